/* bitkiln.h: run compiled networks from C or C++.
 *
 * A bundle's model.so holds one network: its kernels, weights and memory plan. It needs libc, libm and pthreads, nothing else.
 * Compile the bundle's bitkiln.c into the program (any bundle's will do) and open bundles by their path:
 *
 *     bk_model *model = bk_open("bundle", 4);
 *     if (!model) return fprintf(stderr, "%s\n", bk_last_error(NULL)), 1;
 *     bk_set_input(model, 0, pixels, sizeof pixels);
 *     if (bk_run(model) != 0) fprintf(stderr, "%s\n", bk_last_error(model));
 *     bk_get_output(model, 0, scores, sizeof scores);
 *     bk_destroy(model);
 *
 * A program of one network may load model.so itself (dlopen) and begin with bk_create. Linking with model.so works under the name
 * that its SONAME says, which is each bundle's own; but of two that are linked with, bk_create is always the first one's.
 *
 * Functions that return int give 0 on success (or a count) and -1 on an error, which bk_last_error describes; nothing
 * aborts. Each call locks its model, so threads may share one; for answers of one's own set, run and get must then be
 * kept together by the caller. Different models run side by side.
 *
 * After fork() the child may use, destroy or leave its copies of the parent's models; its first run starts threads of its own. What
 * another thread of the parent was computing during the fork has to be run again.
 */
#ifndef BITKILN_H
#define BITKILN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface; bk_abi_version() gives the library's. */
#define BK_ABI_VERSION 1

typedef struct bk_model bk_model;

/* What is known of a tensor. Tensors are dense, in C order. Strings and shape belong to the library. */
typedef struct {
    const char *name;
    const char *dtype; /* "float32", "uint8", "int32", ... as numpy calls it */
    int ndim;
    const int64_t *shape;
    size_t nbytes;
} bk_tensor_info;

int bk_abi_version(void);

/* A runnable copy of the network of the bundle, or of the model.so, at `path`: with its own buffers and `threads` threads (1 to 16,
 * the caller's included; 0 = one for each processor that it may use, at most 4). NULL on failure: bk_last_error(NULL) says
 * why. Defined in bitkiln.c. */
bk_model *bk_open(const char *path, int threads);

/* The same for the library that defines it. */
bk_model *bk_create(int threads);
void bk_destroy(bk_model *model);

/* The last error of the model, or of bk_open and bk_create for NULL; "" when there was none. Valid until the next call. */
const char *bk_last_error(const bk_model *model);

int bk_thread_count(const bk_model *model);

/* Bytes that the model takes beside the library: activations, inputs and outputs, weights that were packed when it was created
 * (all models of a library share them), and what kernels have asked for in its runs so far. */
uint64_t bk_memory_bytes(const bk_model *model);

int bk_input_count(const bk_model *model);
int bk_output_count(const bk_model *model);
int bk_input_info(const bk_model *model, int index, bk_tensor_info *info);
int bk_output_info(const bk_model *model, int index, bk_tensor_info *info);

/* Copies in or out; `nbytes` must be the tensor's size. Outputs are valid after bk_run. */
int bk_set_input(bk_model *model, int index, const void *data, size_t nbytes);
int bk_get_output(bk_model *model, int index, void *data, size_t nbytes);

/* The buffers themselves, 64-byte aligned, to write and read without a copy; NULL for a wrong index. */
void *bk_input_data(bk_model *model, int index);
const void *bk_output_data(const bk_model *model, int index);

int bk_run(bk_model *model);

/* --- Images and what they show ------------------------------------------------------------------------------------ */

/* Layouts of pixels of 8 bits. RGBA and BGRA are laid on white, the fourth byte of RGBX and BGRX is ignored. BK_YUV420 has three
 * planes (I420), BK_NV12 two. */
enum bk_pixels { BK_RGB, BK_BGR, BK_RGBA, BK_BGRA, BK_RGBX, BK_BGRX, BK_GREY, BK_YUV420, BK_NV12 };

/* An image in memory, or a camera's buffer. 0 in `stride` and `rows` means that nothing is padded. */
typedef struct {
    const void *data;
    size_t nbytes;
    int width, height;
    int stride;      /* bytes from one row to the next; of BK_YUV420 in the first plane, half of it in the others */
    int rows;        /* BK_YUV420, BK_NV12: rows of the first plane in memory, where more than the height */
    int pixels;      /* enum bk_pixels */
    int video_range; /* BK_YUV420, BK_NV12: Y is 16..235 (BT.601 as in video), not 0..255 (as in photos) */
} bk_image;

/* Makes the network's first input of an image, as the bundle says: resized, cropped or framed, normalised. The resampling is that
 * of Pillow's bilinear filter, to the bit. What bk_detect and bk_segment give is in the pixels of this image. */
int bk_prepare(bk_model *model, const bk_image *image);

/* What the outputs mean: "detect" or "segment" where the bundle says so, else "". */
const char *bk_task_name(const bk_model *model);

/* A box in pixels of the image prepared last, or else of the network's input. */
typedef struct {
    float left, top, right, bottom;
    float score;
    int32_t label;
} bk_box;

/* Decodes the boxes of the last run, best first, at most `capacity` of them; gives how many. Those of a score of at least
 * `threshold` count; of those of one class that overlap by more than `overlap` (intersection over union) the best.
 * Negative values mean the bundle's own. Of each candidate the best class counts, of all the best 1024. */
int bk_detect(bk_model *model, float threshold, float overlap, bk_box *boxes, int capacity);

enum { BK_OUTSIDE = 65535 };

/* The class of each pixel of the last run, `width` x `height` of them over the image prepared last (or the network's input);
 * BK_OUTSIDE where the network has not seen the image. */
int bk_segment(bk_model *model, uint16_t *mask, int width, int height);

/* --- Steps -------------------------------------------------------------------------------------------------------- */

/* Steps are the network's kernels, in the order they run. Seconds are those of the last bk_run or bk_run_step. */
int bk_step_count(const bk_model *model);
const char *bk_step_name(const bk_model *model, int step);
const char *bk_step_kind(const bk_model *model, int step);
double bk_step_seconds(const bk_model *model, int step);

/* Runs one step. Called for every step in order it does what bk_run does, and between two calls the outputs of the
 * first can be read; later steps may reuse their memory. Most steps have one output. */
int bk_run_step(bk_model *model, int step);
int bk_step_output_count(const bk_model *model, int step);
int bk_step_output_info(const bk_model *model, int step, int index, bk_tensor_info *info);
const void *bk_step_output_data(const bk_model *model, int step, int index);

/* bk_run for a simulated Cortex-A53: marks the whole run as region 0, or with `per_step` each step as a region of its
 * number, by prctl calls that do nothing on a real board. Takes no times. */
int bk_run_marked(bk_model *model, int per_step);

#ifdef __cplusplus
}
#endif

#endif
