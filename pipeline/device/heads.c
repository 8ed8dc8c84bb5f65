/* From the network's outputs to boxes and masks, as the manifest's head describes them. */
#include "runtime.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOST = 1024,  /* candidates that are compared with one another */
    BATCH = 2048, /* candidates looked through at a time: what is kept of them stays in the L1 cache */
    ROWS = 16,    /* the same of rows, which are long */
    CHAINS = 256, /* lists of boxes that were kept, by class */
    UNKNOWN = -2, /* a class that nobody has looked for yet */
};

/* Four floats, compared and selected at once. */
typedef float vector __attribute__((vector_size(16)));
typedef int32_t mask __attribute__((vector_size(16)));

/* A candidate that is good enough; boxes as corners in pixels of the network's input. */
typedef struct {
    float score, left, top, right, bottom;
    int32_t label, place; /* among all candidates, in their order: of equal scores the first is the better one */
} found;

/* The best MOST, the worst of them at the root: a heap. */
typedef struct {
    found *items;
    int count;
} best_ones;

/* --- Best classes ------------------------------------------------------------------------------------------------- */

static vector load(const float *from)
{
    vector to;
    memcpy(&to, from, sizeof to);
    return to;
}

static vector larger(vector a, vector b)
{
    mask better = b > a;
    return (vector)((better & (mask)b) | (~better & (mask)a));
}

/* The largest of `count` scores that lie side by side, NaN and number `skip` left out. */
static float best_of_row(const float *scores, int count, int skip)
{
    vector four = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    float best = -INFINITY;
    int i = 0;
    for (; skip < 0 && i + 4 <= count; i += 4) four = larger(four, load(scores + i));
    for (int lane = 0; lane < 4; lane++) best = four[lane] > best ? four[lane] : best;
    for (; i < count; i++) best = i != skip && scores[i] > best ? scores[i] : best;
    return best;
}

/* The number of the score `best` in such a row, of equal ones the first; -1 where there is none. */
static int32_t place_in_row(const float *scores, int count, int skip, float best)
{
    for (int i = 0; i < count; i++)
        if (i != skip && scores[i] == best) return i;
    return -1;
}

/* The same for `n` neighbouring candidates whose scores of one class lie side by side, `entry` from class to class. */
static void best_of_columns(const float *scores, int64_t entry, int classes, int skip, int n, float *best, int32_t *labels)
{
    for (int i = 0; i < n; i++) best[i] = -INFINITY, labels[i] = -1;
    for (int c = 0; c < classes; c++) {
        const float *row = scores + entry * c;
        mask label = {c, c, c, c};
        if (c == skip) continue;
        int i = 0;
        for (; i + 4 <= n; i += 4) {
            vector now = load(best + i), next = load(row + i);
            mask better = next > now, old;
            memcpy(&old, labels + i, sizeof old);
            now = (vector)((better & (mask)next) | (~better & (mask)now)), old = (better & label) | (~better & old);
            memcpy(best + i, &now, sizeof now);
            memcpy(labels + i, &old, sizeof old);
        }
        for (; i < n; i++)
            if (row[i] > best[i]) best[i] = row[i], labels[i] = c;
    }
}

/* Scores of `n` candidates (or pixels), `step` apart, with classes `entry` apart; one of the two is 1. */
typedef struct {
    const float *scores;
    int64_t step, entry;
    int classes, skip;
} score_table;

/* Of rows, the labels are UNKNOWN: who needs one looks for it. */
static void best_classes(const score_table *in, int64_t from, int n, float *best, int32_t *labels)
{
    const float *scores = in->scores + from * in->step;
    if (in->entry != 1) {
        best_of_columns(scores, in->entry, in->classes, in->skip, n, best, labels);
        return;
    }
    for (int i = 0; i < n; i++) best[i] = best_of_row(scores + in->step * i, in->classes, in->skip), labels[i] = UNKNOWN;
}

/* --- Scores ------------------------------------------------------------------------------------------------------- */

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* The value before a sigmoid that becomes `score`. */
static float before_sigmoid(float score)
{
    return score <= 0.0f ? -INFINITY : score >= 1.0f ? INFINITY : logf(score / (1.0f - score));
}

/* --- Boxes -------------------------------------------------------------------------------------------------------- */

static void centred(found *box, float x, float y, float width, float height)
{
    box->left = x - width / 2, box->right = x + width / 2;
    box->top = y - height / 2, box->bottom = y + height / 2;
}

/* The mean bin of each side's distribution: softmax over `bins` numbers for left, top, right and bottom. */
static void mean_bins(const bk_candidates *of, const float *numbers, float sides[4])
{
    for (int side = 0; side < 4; side++, numbers += of->bins * of->box_entry) {
        float most = numbers[0], sum = 0, weighted = 0;
        for (int bin = 1; bin < of->bins; bin++) most = fmaxf(most, numbers[bin * of->box_entry]);
        for (int bin = 0; bin < of->bins; bin++) {
            float share = expf(numbers[bin * of->box_entry] - most);
            sum += share, weighted += share * (float)bin;
        }
        sides[side] = weighted / sum;
    }
}

static void decode(const bk_candidates *of, const float *boxes, int64_t i, found *box)
{
    float n[4];
    if (of->coding == BK_CELL_SIDES) {
        float column = (float)(i % of->columns) + 0.5f, row = (float)(i / of->columns) + 0.5f;
        mean_bins(of, boxes + of->box_at + i * of->box_step, n);
        box->left = (column - n[0]) * of->cell_x, box->right = (column + n[2]) * of->cell_x;
        box->top = (row - n[1]) * of->cell_y, box->bottom = (row + n[3]) * of->cell_y;
        return;
    }
    for (int e = 0; e < 4; e++) n[e] = boxes[of->box_at + i * of->box_step + e * of->box_entry];
    if (of->coding >= BK_CELL_EXP && of->coding <= BK_CELL_LINEAR) {
        if (of->activation == BK_SIGMOID)
            for (int e = 0; e < 4; e++)
                if (e < 2 || of->coding == BK_CELL_SQUARE) n[e] = sigmoid(n[e]);
        float column = (float)(i % of->columns), row = (float)(i / of->columns), shift = (of->stretch - 1) / 2;
        float width = of->coding == BK_CELL_EXP ? expf(n[2]) : of->coding == BK_CELL_SQUARE ? 4 * n[2] * n[2] : n[2];
        float height = of->coding == BK_CELL_EXP ? expf(n[3]) : of->coding == BK_CELL_SQUARE ? 4 * n[3] * n[3] : n[3];
        centred(box, (n[0] * of->stretch - shift + column) * of->cell_x, (n[1] * of->stretch - shift + row) * of->cell_y,
                width * of->anchor_x, height * of->anchor_y);
        return;
    }
    if (of->coding >= BK_PRIOR) {
        const float *prior = of->priors + 4 * i;
        int y = of->coding == BK_PRIOR_YX; /* where x is not the first */
        centred(box, prior[0] + n[y] * of->variances[0] * prior[2], prior[1] + n[1 - y] * of->variances[0] * prior[3],
                expf(n[2 + y] * of->variances[1]) * prior[2], expf(n[3 - y] * of->variances[1]) * prior[3]);
        return;
    }
    int y = of->coding == BK_CORNERS_YX;
    float first = n[y] * of->unit_x, second = n[1 - y] * of->unit_y;
    float third = n[2 + y] * of->unit_x, fourth = n[3 - y] * of->unit_y;
    if (of->coding == BK_CENTRE)
        centred(box, first, second, third, fourth);
    else
        box->left = first, box->top = second, box->right = third, box->bottom = fourth;
}

/* --- The best candidates ------------------------------------------------------------------------------------------ */

static int worse(const found *a, const found *b)
{
    return a->score != b->score ? a->score < b->score : a->place > b->place;
}

static int by_rank(const void *a, const void *b) { return worse(a, b) ? 1 : worse(b, a) ? -1 : 0; }

/* Puts `box` in at position `at` of the heap, or below, where those that are worse move up. */
static void sink(best_ones *best, int at, found box)
{
    for (int child; (child = 2 * at + 1) < best->count; at = child) {
        if (child + 1 < best->count && worse(&best->items[child + 1], &best->items[child])) child++;
        if (!worse(&best->items[child], &box)) break;
        best->items[at] = best->items[child];
    }
    best->items[at] = box;
}

/* Is there no room for a box, because enough are better? */
static int too_bad(const best_ones *best, const found *box) { return best->count == MOST && !worse(&best->items[0], box); }

static void keep(best_ones *best, const found *box)
{
    if (best->count < MOST) {
        best->items[best->count++] = *box;
        if (best->count == MOST)
            for (int at = MOST / 2 - 1; at >= 0; at--) sink(best, at, best->items[at]);
        return;
    }
    sink(best, 0, *box);
}

/* A part of the candidates, where its numbers lie, and where the good ones go. `first` is its first one's place among all. */
typedef struct {
    const bk_head *head;
    const bk_candidates *of;
    const float *boxes, *scores;
    float threshold;
    int first;
    best_ones *kept;
} search;

static float activated(const bk_candidates *of, float x) { return of->activation == BK_SIGMOID ? sigmoid(x) : x; }

/* The share of the best class among the exponentials of all, 0 where it cannot reach the threshold beside the background. */
static float softmax(const search *in, const float *scores, float best)
{
    const bk_head *head = in->head;
    int64_t entry = in->of->score_entry;
    if (head->background >= 0 && best - scores[head->background * entry] < before_sigmoid(in->threshold)) return 0;
    float sum = 0;
    for (int c = 0; c < head->classes; c++) sum += expf(scores[c * entry] - best);
    return 1.0f / sum;
}

/* Keeps candidate i, whose best class and its number are known, if it is good enough; 0 where enough others are better. */
static int consider(const search *in, int64_t i, float best, int32_t label)
{
    const bk_candidates *of = in->of;
    found box = {.label = label, .place = in->first + (int)i};
    box.score = activated(of, best);
    if (of->activation == BK_SOFTMAX) box.score = softmax(in, in->scores + of->score_at + i * of->score_step, best);
    if (of->object_at >= 0) box.score *= activated(of, in->scores[of->object_at + i * of->object_step]);
    if (!(box.score >= in->threshold)) return 1;
    if (too_bad(in->kept, &box)) return 0;
    if (label == UNKNOWN) {
        const float *own = in->scores + of->score_at + i * of->score_step;
        box.label = place_in_row(own, in->head->classes, in->head->background, best);
    }
    if (box.label < 0) return 1;
    decode(of, in->boxes, i, &box);
    if (!isfinite(box.left) || !isfinite(box.top) || !isfinite(box.right) || !isfinite(box.bottom)) return 1;
    keep(in->kept, &box);
    return 1;
}

/* Scores are at most 1: only candidates with an objectness of the threshold need a look at their classes. */
static void search_by_objectness(const search *in)
{
    const bk_candidates *of = in->of;
    float least = of->activation == BK_SIGMOID ? before_sigmoid(in->threshold) : in->threshold;
    for (int64_t i = 0; i < of->count; i++) {
        if (!(in->scores[of->object_at + i * of->object_step] >= least)) continue;
        const float *own = in->scores + of->score_at + i * of->score_step;
        float best = -INFINITY;
        int32_t label = -1;
        for (int c = 0; c < in->head->classes; c++)
            if (c != in->head->background && own[c * of->score_entry] > best) best = own[c * of->score_entry], label = c;
        consider(in, i, best, label);
    }
}

static void search_by_class(const search *in)
{
    const bk_candidates *of = in->of;
    float least = of->activation == BK_SIGMOID ? before_sigmoid(in->threshold) : in->threshold;
    if (of->activation == BK_SOFTMAX) least = -INFINITY;
    score_table table = {in->scores + of->score_at, of->score_step, of->score_entry, in->head->classes, in->head->background};
    float best[BATCH];
    int32_t labels[BATCH];
    float cut = -INFINITY; /* whoever is no better will not be kept either */
    int batch = table.entry == 1 ? ROWS : BATCH;
    for (int64_t from = 0; from < of->count; from += batch) {
        int n = of->count - from < batch ? (int)(of->count - from) : batch;
        best_classes(&table, from, n, best, labels);
        for (int i = 0; i < n; i++)
            if (best[i] >= least && (best[i] > cut || of->activation == BK_SOFTMAX))
                if (!consider(in, from + i, best[i], labels[i])) cut = best[i];
    }
}

static void find_candidates(const bk_model *model, const bk_head *head, float threshold, best_ones *kept)
{
    search in = {.head = head, .threshold = threshold, .kept = kept};
    for (int part = 0; part < head->candidates_count; part++) {
        in.of = &head->candidates[part];
        in.boxes = bk_output_data(model, in.of->boxes), in.scores = bk_output_data(model, in.of->scores);
        if (in.of->object_at >= 0)
            search_by_objectness(&in);
        else
            search_by_class(&in);
        in.first += in.of->count;
    }
}

/* --- Suppression -------------------------------------------------------------------------------------------------- */

static float least_of(float a, float b) { return b < a ? b : a; }
static float most_of(float a, float b) { return b > a ? b : a; }

static float area(const found *box) { return (box->right - box->left) * (box->bottom - box->top); }

static int overlaps(const found *a, const found *b, float overlap)
{
    float width = least_of(a->right, b->right) - most_of(a->left, b->left);
    float height = least_of(a->bottom, b->bottom) - most_of(a->top, b->top);
    if (!(width > 0 && height > 0)) return 0;
    return width * height > overlap * (area(a) + area(b) - width * height);
}

/* Leaves, of the sorted boxes, at most `capacity` that overlap with no better one of their class; gives how many.
 * Those of a class are in one list, which others may share. */
static int suppress(found *boxes, int count, float overlap, int capacity)
{
    int16_t last[CHAINS], before[MOST];
    memset(last, -1, sizeof last);
    int left = 0;
    for (int i = 0; i < count && left < capacity; i++) {
        int16_t *chain = &last[boxes[i].label % CHAINS];
        int k = *chain;
        while (k >= 0 && (boxes[k].label != boxes[i].label || !overlaps(&boxes[k], &boxes[i], overlap))) k = before[k];
        if (k >= 0) continue;
        boxes[left] = boxes[i];
        before[left] = *chain, *chain = (int16_t)left++;
    }
    return left;
}

static float within(float value, float most) { return value < 0 ? 0 : value > most ? most : value; }

/* As it lies on the image. */
static bk_box on_frame(const bk_frame *frame, const found *box)
{
    bk_box out = {box->left, box->top, box->right, box->bottom, box->score, box->label};
    if (!frame->width) return out;
    out.left = within((box->left + frame->left) * frame->step_x, (float)frame->width);
    out.right = within((box->right + frame->left) * frame->step_x, (float)frame->width);
    out.top = within((box->top + frame->top) * frame->step_y, (float)frame->height);
    out.bottom = within((box->bottom + frame->top) * frame->step_y, (float)frame->height);
    return out;
}

static const bk_head *head_for(bk_model *model, enum bk_task task)
{
    const bk_head *head = bk_network.head;
    if (model && head && head->task == task) return head;
    const char *what = task == BK_DETECT ? "boxes" : "masks";
    model ? bk_fail(model, "the bundle knows nothing of %s", what) : bk_fail(NULL, "no model was given");
    return NULL;
}

API const char *bk_task_name(const bk_model *model)
{
    return !model || !bk_network.head ? "" : bk_network.head->task == BK_DETECT ? "detect" : "segment";
}

API int bk_detect(bk_model *model, float threshold, float overlap, bk_box *boxes, int capacity)
{
    const bk_head *head = head_for(model, BK_DETECT);
    if (!head) return -1;
    if (!boxes || capacity < 0 || threshold != threshold || overlap != overlap)
        return bk_fail(model, "no room for boxes, or a threshold that is no number");
    best_ones kept = {malloc(MOST * sizeof *kept.items), 0};
    if (!kept.items) return bk_fail(model, "out of memory: %d boxes", (int)MOST);
    bk_lock(model);
    find_candidates(model, head, threshold < 0 ? head->threshold : threshold, &kept);
    qsort(kept.items, (size_t)kept.count, sizeof *kept.items, by_rank);
    int count = suppress(kept.items, kept.count, overlap < 0 ? head->overlap : overlap, capacity);
    for (int i = 0; i < count; i++) boxes[i] = on_frame(bk_frame_of(model), &kept.items[i]);
    bk_unlock(model);
    free(kept.items);
    return count;
}

/* --- Masks -------------------------------------------------------------------------------------------------------- */

static int32_t class_number(const void *data, const char *dtype, int64_t at)
{
    double number = -1;
    if (strcmp(dtype, "int64") == 0) number = (double)((const int64_t *)data)[at];
    if (strcmp(dtype, "int32") == 0) number = ((const int32_t *)data)[at];
    if (strcmp(dtype, "uint8") == 0) number = ((const uint8_t *)data)[at];
    if (strcmp(dtype, "float32") == 0) number = ((const float *)data)[at];
    return number >= 0 && number < BK_OUTSIDE ? (int32_t)number : BK_OUTSIDE;
}

/* The class of each pixel of the output. */
static void label_pixels(const bk_head *head, const void *data, const char *dtype, int32_t *labels)
{
    int64_t count = (int64_t)head->rows * head->columns;
    score_table table = {data, head->step, head->entry, head->classes, -1};
    float best[BATCH];
    for (int64_t from = 0; from < count && head->entry && head->classes > 1; from += BATCH) {
        int n = count - from < BATCH ? (int)(count - from) : BATCH;
        best_classes(&table, from, n, best, labels + from);
        for (int i = 0; i < n; i++)
            if (labels[from + i] == UNKNOWN)
                labels[from + i] = place_in_row(table.scores + (from + i) * table.step, table.classes, -1, best[i]);
    }
    for (int64_t i = 0; i < count && head->entry && head->classes == 1; i++)
        labels[i] = table.scores[i * head->step] > head->threshold;
    for (int64_t i = 0; i < count && !head->entry; i++) labels[i] = class_number(data, dtype, i);
}

/* Which of `cells` cells, over an input `extent` long, lies under position `at` of an image; -1 outside of it. */
static int cell_under(float at, float step, float start, int extent, int cells)
{
    float place = at / step - start;
    if (!(place >= 0 && place < (float)extent)) return -1;
    int cell = (int)(place * (float)cells / (float)extent);
    return cell < cells ? cell : cells - 1;
}

static void spread(const bk_head *head, const bk_frame *frame, const int32_t *labels, uint16_t *mask, int width, int height)
{
    const bk_preprocessing *how = bk_network.preprocessing;
    int framed = frame->width && how, across = framed ? how->width : width, down = framed ? how->height : height;
    float wide = framed ? (float)frame->width / (float)width : 1, high = framed ? (float)frame->height / (float)height : 1;
    float step_x = framed ? frame->step_x : 1, step_y = framed ? frame->step_y : 1;
    for (int y = 0; y < height; y++) {
        int row = cell_under(((float)y + 0.5f) * high, step_y, framed ? frame->top : 0, down, head->rows);
        for (int x = 0; x < width; x++) {
            int column = cell_under(((float)x + 0.5f) * wide, step_x, framed ? frame->left : 0, across, head->columns);
            int32_t label = row < 0 || column < 0 || labels[(int64_t)row * head->columns + column] < 0
                                ? BK_OUTSIDE
                                : labels[(int64_t)row * head->columns + column];
            mask[(size_t)y * (size_t)width + (size_t)x] = (uint16_t)label;
        }
    }
}

API int bk_segment(bk_model *model, uint16_t *mask, int width, int height)
{
    const bk_head *head = head_for(model, BK_SEGMENT);
    if (!head) return -1;
    if (!mask || width < 1 || height < 1) return bk_fail(model, "no room for a mask of %d x %d", width, height);
    int32_t *labels = malloc(sizeof *labels * (size_t)head->rows * (size_t)head->columns);
    if (!labels) return bk_fail(model, "out of memory: %d x %d classes", head->columns, head->rows);
    bk_lock(model);
    const char *dtype = bk_network.tensors[bk_network.outputs[head->output]].dtype;
    label_pixels(head, bk_output_data(model, head->output), dtype, labels);
    spread(head, bk_frame_of(model), labels, mask, width, height);
    bk_unlock(model);
    free(labels);
    return 0;
}
