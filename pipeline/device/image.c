/* From an image to the network's input: what the manifest calls preprocessing.
 *
 * The resampling follows Pillow's for images of 8 bits (src/libImaging/Resample.c), on whose results networks are trained: a
 * triangle as wide as the step between two results where the image becomes smaller, coefficients in fixed point with 22
 * bits after the point, first along the rows, then along the columns (as up to Pillow 12), each rounded to 8 bits.
 */
#include "runtime.h"

#include <stdlib.h>
#include <string.h>

enum { FRACTION = 22, MAX_SIDE = 1 << 15 };

/* --- Pixels ------------------------------------------------------------------------------------------------------- */

/* Bytes of a pixel, where red, green and blue are in it, and its opacity (-1: it has none). */
static const struct {
    int bytes, red, green, blue, alpha;
} packed[] = {
    [BK_RGB] = {3, 0, 1, 2, -1},  [BK_BGR] = {3, 2, 1, 0, -1},  [BK_RGBA] = {4, 0, 1, 2, 3},    [BK_BGRA] = {4, 2, 1, 0, 3},
    [BK_RGBX] = {4, 0, 1, 2, -1}, [BK_BGRX] = {4, 2, 1, 0, -1}, [BK_GREY] = {1, 0, 0, 0, -1},   [BK_YUV420] = {1, 0, 0, 0, -1},
    [BK_NV12] = {1, 0, 0, 0, -1},
};

static size_t stride_of(const bk_image *image)
{
    return image->stride ? (size_t)image->stride : (size_t)image->width * (size_t)packed[image->pixels].bytes;
}

static size_t rows_of(const bk_image *image) { return (size_t)(image->rows ? image->rows : image->height); }

/* The bytes an image takes, or 0 where its numbers make no sense. */
static size_t needed_bytes(const bk_image *image)
{
    if (image->pixels < BK_RGB || image->pixels > BK_NV12) return 0;
    if (image->width < 1 || image->height < 1 || image->width > MAX_SIDE || image->height > MAX_SIDE) return 0;
    size_t dense = (size_t)image->width * (size_t)packed[image->pixels].bytes;
    if (image->stride < 0 || stride_of(image) < dense || image->stride > 8 * MAX_SIDE) return 0;
    if (image->rows < 0 || rows_of(image) < (size_t)image->height || image->rows > 2 * MAX_SIDE) return 0;
    if (image->pixels < BK_YUV420) return stride_of(image) * (size_t)(image->height - 1) + dense;
    return stride_of(image) * rows_of(image) + 2 * ((stride_of(image) + 1) / 2) * ((rows_of(image) + 1) / 2);
}

static uint8_t clip(int value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

/* ITU-R BT.601 of photos, or of video, in fixed point with 16 bits after the point. */
static void yuv_to_rgb(int y, int u, int v, int video, uint8_t *rgb)
{
    int light = (video ? (y - 16) * 76309 : y * 65536) + 32768;
    u -= 128, v -= 128;
    rgb[0] = clip((light + v * (video ? 104597 : 91881)) >> 16);
    rgb[1] = clip((light - u * (video ? 25675 : 22554) - v * (video ? 53279 : 46802)) >> 16);
    rgb[2] = clip((light + u * (video ? 132201 : 116130)) >> 16);
}

static void read_yuv(const bk_image *image, int y, uint8_t *rgb)
{
    size_t stride = stride_of(image), half = (stride + 1) / 2, plane = half * ((rows_of(image) + 1) / 2);
    const uint8_t *light = (const uint8_t *)image->data + stride * (size_t)y;
    const uint8_t *chroma = (const uint8_t *)image->data + stride * rows_of(image);
    int planar = image->pixels == BK_YUV420;
    const uint8_t *u = chroma + (size_t)(y / 2) * (planar ? half : 2 * half), *v = u + (planar ? plane : 1);
    for (int x = 0; x < image->width; x++) {
        size_t at = (size_t)(x / 2) * (planar ? 1 : 2);
        yuv_to_rgb(light[x], u[at], v[at], image->video_range, rgb + 3 * x);
    }
}

static void read_packed(const bk_image *image, int y, uint8_t *rgb)
{
    int bytes = packed[image->pixels].bytes, alpha = packed[image->pixels].alpha;
    int red = packed[image->pixels].red, green = packed[image->pixels].green, blue = packed[image->pixels].blue;
    const uint8_t *from = (const uint8_t *)image->data + stride_of(image) * (size_t)y;
    for (int x = 0; x < image->width; x++, from += bytes, rgb += 3) {
        rgb[0] = from[red], rgb[1] = from[green], rgb[2] = from[blue];
        if (alpha < 0) continue;
        for (int c = 0; c < 3; c++) rgb[c] = (uint8_t)((rgb[c] * from[alpha] + 255 * (255 - from[alpha]) + 127) / 255);
    }
}

/* Row y of the image, its channels interleaved in the network's order: in place where it lies so, else in `out`, which has room for
 * three channels. */
static const uint8_t *read_row(const bk_image *image, const bk_preprocessing *how, int y, uint8_t *out)
{
    if ((image->pixels == BK_RGB && how->order == BK_ORDER_RGB) || (image->pixels == BK_BGR && how->order == BK_ORDER_BGR) ||
        (image->pixels == BK_GREY && how->order == BK_ORDER_GREY))
        return (const uint8_t *)image->data + stride_of(image) * (size_t)y;
    if (image->pixels < BK_YUV420)
        read_packed(image, y, out);
    else
        read_yuv(image, y, out);
    if (how->order == BK_ORDER_BGR)
        for (uint8_t *at = out; at < out + 3 * image->width; at += 3) {
            uint8_t red = at[0];
            at[0] = at[2], at[2] = red;
        }
    if (how->order == BK_ORDER_GREY) /* as Pillow has it, src/libImaging/Convert.c */
        for (int x = 0; x < image->width; x++)
            out[x] = (uint8_t)((out[3 * x] * 19595 + out[3 * x + 1] * 38470 + out[3 * x + 2] * 7471 + 32768) >> 16);
    return out;
}

/* --- Geometry ----------------------------------------------------------------------------------------------------- */

/* The image is resized to `width` x `height`; the network's input begins at (left, top) of that. */
typedef struct {
    int width, height, left, top;
} placement;

/* Half of a difference, rounded to the even one of two neighbours, as Python rounds. */
static int half_of(int value) { return value / 2 + (value % 2 & value / 2); }

static int at_least_one(int64_t value) { return value < 1 ? 1 : (int)value; }

static placement place(const bk_image *image, const bk_preprocessing *how)
{
    placement place = {how->width, how->height, 0, 0};
    int64_t width = image->width, height = image->height;
    if (how->resize == BK_SHORT_SIDE) {
        int64_t side = width < height ? width : height;
        place.width = (int)(how->resize_to * width / side), place.height = (int)(how->resize_to * height / side);
        place.left = half_of(place.width - how->width), place.top = half_of(place.height - how->height);
    }
    if (how->resize == BK_LETTERBOX) { /* as darknet has it, letterbox_image in src/image.c */
        if ((float)how->width / (float)width < (float)how->height / (float)height)
            place.height = at_least_one(height * how->width / width);
        else
            place.width = at_least_one(width * how->height / height);
        place.left = -((how->width - place.width) / 2), place.top = -((how->height - place.height) / 2);
    }
    return place;
}

/* --- Resampling --------------------------------------------------------------------------------------------------- */

/* Results `from` to `to` of an axis. The one number i after `from` is the sum over its taps k of weights[i * most + k] times
 * pixel first[i] + k. */
typedef struct {
    int from, to, most;
    int32_t *first, *taps, *weights;
    double *exact;
} filter;

static void free_filter(filter *filter)
{
    free(filter->first);
    free(filter->taps);
    free(filter->weights);
    free(filter->exact);
}

static void make_taps(filter *filter, int index, int size, double scale, double wide)
{
    double center = (filter->from + index + 0.5) * scale, sum = 0;
    int first = (int)(center - wide + 0.5), last = (int)(center + wide + 0.5);
    first = first < 0 ? 0 : first, last = last > size ? size : last;
    for (int k = 0; k < last - first; k++) {
        double away = (k + first - center + 0.5) * (1.0 / wide);
        away = away < 0 ? -away : away;
        filter->exact[k] = away < 1.0 ? 1.0 - away : 0.0;
        sum += filter->exact[k];
    }
    filter->first[index] = first, filter->taps[index] = last - first;
    for (int k = 0; k < last - first; k++) {
        double weight = sum != 0.0 ? filter->exact[k] / sum : filter->exact[k];
        filter->weights[(size_t)index * (size_t)filter->most + (size_t)k] = (int32_t)(0.5 + weight * (1 << FRACTION));
    }
}

/* For an axis of `size` pixels that becomes one of `resized`, of which the network's `extent` begin at `start`. */
static int make_filter(filter *filter, int size, int resized, int start, int extent)
{
    double scale = (double)size / resized, wide = scale < 1.0 ? 1.0 : scale;
    filter->from = start < 0 ? 0 : start;
    filter->to = start + extent < resized ? start + extent : resized;
    size_t count = (size_t)(filter->to - filter->from);
    filter->most = (int)wide * 2 + 3;
    filter->first = malloc(count * sizeof *filter->first);
    filter->taps = malloc(count * sizeof *filter->taps);
    filter->weights = malloc(count * (size_t)filter->most * sizeof *filter->weights);
    filter->exact = malloc((size_t)filter->most * sizeof *filter->exact);
    if (!filter->first || !filter->taps || !filter->weights || !filter->exact) return -1;
    for (size_t i = 0; i < count; i++) make_taps(filter, (int)i, size, scale, wide);
    return 0;
}

static uint8_t rounded(int32_t sum) { return clip((sum + (1 << (FRACTION - 1))) >> FRACTION); }

static void filter_row(const filter *filter, const uint8_t *row, int channels, uint8_t *out)
{
    for (int i = 0; i < filter->to - filter->from; i++) {
        const int32_t *weights = filter->weights + (size_t)i * (size_t)filter->most;
        const uint8_t *pixel = row + filter->first[i] * channels;
        int32_t sums[3] = {0, 0, 0};
        if (channels == 1)
            for (int k = 0; k < filter->taps[i]; k++) sums[0] += weights[k] * pixel[k];
        else
            for (int k = 0; k < filter->taps[i]; k++, pixel += 3)
                sums[0] += weights[k] * pixel[0], sums[1] += weights[k] * pixel[1], sums[2] += weights[k] * pixel[2];
        for (int c = 0; c < channels; c++) *out++ = rounded(sums[c]);
    }
}

/* Result `index` along the columns: `rows` are `width` bytes long, the first of them is row `first` of the image. */
static void filter_column(const filter *filter, int index, const uint8_t *rows, int first, size_t width, uint8_t *out)
{
    const int32_t *weights = filter->weights + (size_t)index * (size_t)filter->most;
    const uint8_t *top = rows + (size_t)(filter->first[index] - first) * width;
    for (size_t x = 0; x < width; x++) {
        int32_t sum = 0;
        for (int k = 0; k < filter->taps[index]; k++) sum += weights[k] * top[(size_t)k * width + x];
        out[x] = rounded(sum);
    }
}

/* --- Values ------------------------------------------------------------------------------------------------------- */

/* Where the network's values go, and what a pixel's byte becomes: of each channel for 0..255 and, last, a letterbox's bars. */
typedef struct {
    const bk_preprocessing *how;
    int channels, bytes;
    unsigned char *data;
    union {
        float real;
        uint8_t whole;
    } table[3][257];
} values;

/* To the nearest whole number, the even one of two, as Python and numpy round. */
static int nearest(float value, int low, int high)
{
    if (!(value > (float)low)) return low;
    if (value >= (float)high) return high;
    int down = (int)value - (value < (float)(int)value);
    float rest = value - (float)down;
    return down + (rest > 0.5f || (rest == 0.5f && down % 2 != 0));
}

/* Fills `values`; -1 where the input is of a type that no image becomes. */
static int make_values(values *values, const bk_preprocessing *how, const bk_tensor *input, unsigned char *data)
{
    values->how = how, values->data = data;
    values->channels = how->order == BK_ORDER_GREY ? 1 : 3, values->bytes = input->bits / 8;
    int real = strcmp(input->dtype, "float32") == 0, positive = strcmp(input->dtype, "uint8") == 0;
    if (!real && !positive && strcmp(input->dtype, "int8") != 0) return -1;
    for (int c = 0; c < values->channels; c++)
        for (int i = 0; i <= 256; i++) {
            float value = ((i < 256 ? (float)i : how->fill) - how->mean[c]) * how->scale[c];
            if (real)
                values->table[c][i].real = value;
            else
                values->table[c][i].whole = (uint8_t)nearest(value, positive ? 0 : -128, positive ? 255 : 127);
        }
    return 0;
}

/* Puts the values of pixels `from` to `to` of row y: of the interleaved `bytes`, or of the bars where there are none. */
static void put(const values *values, int y, int from, int to, const uint8_t *bytes)
{
    const bk_preprocessing *how = values->how;
    size_t width = (size_t)how->width, channels = (size_t)values->channels, step = how->planes ? 1 : channels;
    for (size_t c = 0; c < channels; c++) {
        size_t start = how->planes ? (c * (size_t)how->height + (size_t)y) * width : (size_t)y * width * channels + c;
        for (int x = from; x < to; x++) {
            int byte = bytes ? bytes[(size_t)(x - from) * channels + c] : 256;
            size_t at = start + (size_t)x * step;
            if (values->bytes == 1)
                values->data[at] = values->table[c][byte].whole;
            else
                ((float *)(void *)values->data)[at] = values->table[c][byte].real;
        }
    }
}

/* --- Putting it together ------------------------------------------------------------------------------------------ */

/* The rows that the vertical filter takes, resized along the rows, or NULL. */
static uint8_t *resized_rows(const bk_image *image, const bk_preprocessing *how, const filter *across, const filter *down)
{
    int channels = how->order == BK_ORDER_GREY ? 1 : 3, last = down->to - down->from - 1;
    int first = down->first[0], end = down->first[last] + down->taps[last];
    size_t width = (size_t)(across->to - across->from) * (size_t)channels;
    uint8_t *rows = malloc((size_t)(end - first) * width), *row = malloc((size_t)image->width * 3);
    for (int y = first; y < end && rows && row; y++) {
        const uint8_t *pixels = read_row(image, how, y, row);
        filter_row(across, pixels, channels, rows + (size_t)(y - first) * width);
    }
    if (!row) {
        free(rows);
        rows = NULL;
    }
    free(row);
    return rows;
}

static int fill_input(const values *values, const bk_image *image, const placement *place, const filter *across, const filter *down)
{
    const bk_preprocessing *how = values->how;
    size_t width = (size_t)(across->to - across->from) * (size_t)values->channels;
    uint8_t *rows = resized_rows(image, how, across, down), *out = malloc(width);
    int left = across->from - place->left, right = across->to - place->left;
    for (int y = 0; y < how->height && rows && out; y++) {
        int at = y + place->top;
        if (at < down->from || at >= down->to) {
            put(values, y, 0, how->width, NULL);
            continue;
        }
        filter_column(down, at - down->from, rows, down->first[0], width, out);
        put(values, y, 0, left, NULL);
        put(values, y, left, right, out);
        put(values, y, right, how->width, NULL);
    }
    int code = rows && out ? 0 : -1;
    free(rows);
    free(out);
    return code;
}

static int prepare(bk_model *model, const bk_image *image, const values *values)
{
    const bk_preprocessing *how = values->how;
    placement at = place(image, how);
    filter across = {0}, down = {0};
    int code = make_filter(&across, image->width, at.width, at.left, how->width);
    if (code == 0) code = make_filter(&down, image->height, at.height, at.top, how->height);
    if (code == 0) code = fill_input(values, image, &at, &across, &down);
    free_filter(&across);
    free_filter(&down);
    if (code != 0) return bk_fail(model, "out of memory: an image of %d x %d", image->width, image->height);
    *bk_frame_of(model) = (bk_frame){.width = image->width,
                                     .height = image->height,
                                     .left = (float)at.left,
                                     .top = (float)at.top,
                                     .step_x = (float)image->width / (float)at.width,
                                     .step_y = (float)image->height / (float)at.height};
    return 0;
}

API int bk_prepare(bk_model *model, const bk_image *image)
{
    if (!model) return bk_fail(NULL, "no model was given");
    const bk_preprocessing *how = bk_network.preprocessing;
    if (!how) return bk_fail(model, "the bundle says nothing of images");
    size_t needed = image && image->data ? needed_bytes(image) : 0;
    if (!needed) return bk_fail(model, "no image: its pixels, layout, sides (1 to %d), stride or rows make no sense", MAX_SIDE);
    if (image->nbytes < needed)
        return bk_fail(model, "the image takes %llu bytes, %llu were given", (unsigned long long)needed,
                       (unsigned long long)image->nbytes);
    values values;
    if (make_values(&values, how, &bk_network.tensors[bk_network.inputs[0]], bk_input_data(model, 0)) != 0)
        return bk_fail(model, "its first input is of a type that images do not become");
    bk_lock(model);
    int code = prepare(model, image, &values);
    bk_unlock(model);
    return code;
}
