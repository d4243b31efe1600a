/*
 * The Laplacian of Gaussian of square patches at several scales, divided by its local root mean square, and the mean of
 * the strongest pixels: what `unary.detectors.laplacian` defines, for one patch at a time.
 *
 * Three things make it fast. The filters use their symmetry, and all scales of a group share what they load; a patch
 * and its filtered copies stay near the processor. The window of the root mean square is so wide that its square is
 * known to within some per cent from a few nodes, to both sides by bounds that hold; only the pixels that may be among
 * the strongest by these bounds get the sum over the whole window, which is exact. And nothing is sorted: a pixel is
 * first compared with the strongest so far, without root or quotient. Maps need the whole window everywhere.
 */

#include <math.h>
#include <string.h>

#include "vectors.h"

#define GROUP 3          /* scales filtered together */
#define MOST_SCALES 16
#define MOST_STRONGEST 64
#define TOGETHER 8       /* candidates whose windows are added up together */
#define MOST_NODES 64
#define FEW_NODES 8      /* the usual number, for which the compiler unrolls */
#define GUESS 0.8f       /* of what the least of the strongest answered in the patch before */
#define STRIP (2 * LANES) /* columns filtered together; sides are multiples of that */
#define SLACK 1e-5f      /* of bounds, for rounding */

typedef int64_t wide_ivec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4))); /* a vector at any address */

/* Kernels of scale s: taps 0 to radii[s] of the Gaussian's second derivative times minus the variance, `bend`, and of
 * the Gaussian, `smooth`. Radii are multiples of 4 and ascend. `mirror` says which pixel lies at -reach to side + reach,
 * reach being the largest radius. The window of the root mean square is the matrix `window`, (side, side), symmetric and 0 beyond
 * `window_reach` of its diagonal, mirrored ends apart. It lies
 * between `low` * N N' - `excess` and `high` * N N', where N is `nodes`, (side, count_nodes), none of it negative, and
 * the sum of each of its rows at least `least`; `nodes_across` is N'. */
struct bank {
    int side, scales, reach, window_reach, count_nodes, strongest;
    float floor, low, high, excess, least;
    const int *radii, *mirror;
    const float *const *bend, *const *smooth;
    const float *window, *nodes, *nodes_across;
};

/* Where one patch is worked on: the padded patch; the two filtered copies of a strip of every scale of a group, rows
 * padded; the responses of a group; what the nodes see
 * of the squares, and that spread along the rows again; how far the bounds are apart, by row and by column; a row of
 * squares and of what passes; what belongs to TOGETHER windows; and the candidates. */
struct workplace {
    float *patch, *filtered[GROUP][2], *response[GROUP], *seen, *spread, *excess, *row, *weights, *sums;
    int32_t *found;
    int *places;
    float *highest;
    int line, rows;
};

/* Pixels that may be among the strongest, any number: where they lie, in reading order, and the most that their answers
 * may be; and the least that the strongest so far answer, ascending. */
struct contest {
    int count, *places;
    float *highest, least[MOST_STRONGEST];
};

INLINE float *claim(char **memory, long floats) {
    float *const claimed = (float *)*memory;
    *memory += (floats * 4 + 63) / 64 * 64;
    return claimed;
}

static struct workplace lay_out(const struct bank *bank, char **memory) {
    struct workplace at = {.line = bank->side + 2 * bank->reach, .rows = bank->side + 2 * bank->reach + 4};
    at.patch = claim(memory, (long)bank->side * at.line);
    for (int s = 0; s < GROUP; s++) {
        for (int kind = 0; kind < 2; kind++) at.filtered[s][kind] = claim(memory, (long)at.rows * STRIP);
        at.response[s] = claim(memory, (long)bank->side * bank->side);
    }
    at.seen = claim(memory, (long)bank->count_nodes * bank->side);
    at.spread = claim(memory, (long)bank->count_nodes * bank->side);
    at.excess = claim(memory, 2L * bank->side);
    at.row = claim(memory, bank->side);
    at.found = (int32_t *)claim(memory, bank->side);
    at.weights = claim(memory, (long)bank->side * TOGETHER);
    at.sums = claim(memory, (long)bank->side * TOGETHER);
    at.places = (int *)claim(memory, (long)bank->side * bank->side);
    at.highest = claim(memory, (long)bank->side * bank->side);
    return at;
}

/* Bytes that `unary_pool` needs, at a multiple of 64. */
long unary_pool_memory(const struct bank *bank) {
    char *end = 0;
    lay_out(bank, &end);
    return (long)(end - (char *)0);
}

/* Lay a patch out with its mirrored columns, less its mean, which no filter answers to; return the mean, of intensity. */
static float take_in(const struct bank *bank, const struct workplace *at, const uint16_t *pixels, const float *values) {
    const int side = bank->side, reach = bank->reach;
    const long count = (long)side * side;
    float mean;
    if (pixels) {
        uint64_t sum = 0;
        for (long place = 0; place < count; place++) sum += pixels[place];
        mean = (float)(sum / count);
    } else {
        double sum = 0;
        for (long place = 0; place < count; place++) sum += values[place];
        mean = (float)(sum / count);
    }
    for (int y = 0; y < side; y++) {
        float *row = at->patch + (long)y * at->line + reach;
        if (pixels)
            for (int x = 0; x < side; x++) row[x] = ((float)pixels[y * side + x] - mean) * (1.0f / 65535.0f);
        else
            for (int x = 0; x < side; x++) row[x] = values[y * side + x] - mean;
        for (int x = 0; x < reach; x++) row[x - reach] = row[bank->mirror[x]];
        for (int x = side; x < side + reach; x++) row[x] = row[bank->mirror[x + reach]];
    }
    return mean;
}

/* --- filters ----------------------------------------------------------------------------------------------------- */

/* The taps from `from` to `to` of scales `first` to `count` of a group, along a row, for STRIP columns from `in` on. */
INLINE void add_taps(const float *in, int from, int to, const struct bank *bank, int scale, int first, int count,
                     vec sums[GROUP][2][2]) {
    for (int t = from; t <= to; t++) {
        const vec pair[2] = {*(const loose *)(in - t) + *(const loose *)(in + t),
                             *(const loose *)(in + LANES - t) + *(const loose *)(in + LANES + t)};
        UNROLL for (int s = first; s < count; s++) {
            const float bend = bank->bend[scale + s][t], smooth = bank->smooth[scale + s][t];
            UNROLL for (int half = 0; half < 2; half++) {
                sums[s][0][half] += pair[half] * bend;
                sums[s][1][half] += pair[half] * smooth;
            }
        }
    }
}

/* Filter STRIP columns along the rows, by the kernels of `count` scales from `scale` on. */
INLINE void filter_rows(const struct bank *bank, const struct workplace *at, int col, int scale, int count) {
    const int *radii = bank->radii + scale;
    for (int y = 0; y < bank->side; y++) {
        const float *in = at->patch + (long)y * at->line + bank->reach + col;
        vec sums[GROUP][2][2];
        UNROLL for (int s = 0; s < count; s++)
            UNROLL for (int half = 0; half < 2; half++) {
                const vec middle = *(const loose *)(in + half * LANES);
                sums[s][0][half] = middle * bank->bend[scale + s][0];
                sums[s][1][half] = middle * bank->smooth[scale + s][0];
            }
        add_taps(in, 1, radii[0], bank, scale, 0, count, sums);
        if (count > 1) add_taps(in, radii[0] + 1, radii[1], bank, scale, 1, count, sums);
        if (count > 2) add_taps(in, radii[1] + 1, radii[2], bank, scale, 2, count, sums);
        UNROLL for (int s = 0; s < count; s++)
            UNROLL for (int kind = 0; kind < 2; kind++) {
                vec *out = (vec *)at->filtered[s][kind] + bank->reach + y;
                out[0] = sums[s][kind][0], out[at->rows] = sums[s][kind][1];
            }
    }
}

/* Finish a strip of the response of one scale along the columns. Four rows share what they load: a tap further, all but
 * one of the rows above and below are those of the tap before. */
static void filter_cols(const struct bank *bank, const struct workplace *at, int col, int scale, int which) {
    const int side = bank->side, reach = bank->reach, radius = bank->radii[scale];
    for (int kind = 0; kind < 2; kind++)
        for (int half = 0; half < 2; half++) {
            vec *rows = (vec *)at->filtered[which][kind] + half * at->rows;
            for (int y = reach - radius, below = side + reach + radius - 1; y < reach; y++, below--)
                rows[y] = rows[reach + bank->mirror[y]], rows[below] = rows[reach + bank->mirror[below]];
        }
    const float *bend = bank->bend[scale], *smooth = bank->smooth[scale];
    for (int half = 0; half < 2; half++)
        for (int y = 0; y < side; y += 4) {
            const vec *bent = (const vec *)at->filtered[which][0] + half * at->rows + reach + y;
            const vec *smoothed = (const vec *)at->filtered[which][1] + half * at->rows + reach + y;
            vec above[2][4], below[2][4], sum[4];
            UNROLL for (int n = 0; n < 4; n++) {
                above[0][n] = below[0][n] = bent[n];
                above[1][n] = below[1][n] = smoothed[n];
                sum[n] = above[0][n] * smooth[0] + above[1][n] * bend[0];
            }
            for (int start = 0; start < radius; start += 4)
                UNROLL for (int n = 1; n <= 4; n++) {
                    const int t = start + n;
                    above[0][-n & 3] = bent[-t], below[0][(n + 3) & 3] = bent[t + 3];
                    above[1][-n & 3] = smoothed[-t], below[1][(n + 3) & 3] = smoothed[t + 3];
                    UNROLL for (int m = 0; m < 4; m++) {
                        sum[m] += (above[0][(m - n) & 3] + below[0][(m + n) & 3]) * smooth[t];
                        sum[m] += (above[1][(m - n) & 3] + below[1][(m + n) & 3]) * bend[t];
                    }
                }
            UNROLL for (int n = 0; n < 4; n++)
                *(vec *)(at->response[which] + (long)(y + n) * side + col + half * LANES) = sum[n];
        }
}

/* The responses of `count` scales from `scale` on. */
static void respond(const struct bank *bank, const struct workplace *at, int scale, int count) {
    for (int col = 0; col < bank->side; col += STRIP) {
        if (count == 1) filter_rows(bank, at, col, scale, 1);
        if (count == 2) filter_rows(bank, at, col, scale, 2);
        if (count == 3) filter_rows(bank, at, col, scale, 3);
        for (int which = 0; which < count; which++) filter_cols(bank, at, col, scale + which, which);
    }
}

/* --- the strongest pixels ---------------------------------------------------------------------------------------- */

/* sums[n][x] = sum over rows y of weights[y * step + n] * response[y][x]^2, for `count` rows n, at most TOGETHER. */
INLINE void weigh_squares(const float *response, int side, const float *weights, int step, int rows, int count,
                          float *sums) {
    for (int x = 0; x < side; x += STRIP) {
        vec total[TOGETHER][2] = {0};
        for (int y = 0; y < rows; y++) {
            const vec *in = (const vec *)(response + (long)y * side + x);
            const vec squares[2] = {in[0] * in[0], in[1] * in[1]};
            UNROLL for (int n = 0; n < count; n++) {
                const float weight = weights[(long)y * step + n];
                total[n][0] += squares[0] * weight, total[n][1] += squares[1] * weight;
            }
        }
        UNROLL for (int n = 0; n < count; n++) {
            vec *out = (vec *)(sums + (long)n * side + x);
            out[0] = total[n][0], out[1] = total[n][1];
        }
    }
}

INLINE float sum_of(vec values) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += values[lane];
    return total;
}

/* Put a value among the largest, which ascend, in place of the least. */
INLINE void insert(float *largest, int count, float value) {
    int place = 0;
    for (; place + 1 < count && largest[place + 1] < value; place++) largest[place] = largest[place + 1];
    largest[place] = value;
}

/* How far the bounds are apart along one axis, from what the nodes of that axis see in all. */
INLINE void measure_excess(const struct bank *bank, const float *seen, int nodes, float *excess) {
    const float share = bank->excess * bank->low / bank->least * (1.0f + SLACK);
    for (int x = 0; x < bank->side; x += LANES) {
        vec sum = {0};
        for (int k = 0; k < nodes; k++) sum += *(const vec *)(bank->nodes_across + (long)k * bank->side + x) * seen[k];
        *(vec *)(excess + x) = sum * share;
    }
}

/* Measure the squares at the nodes and spread that along the rows; return the sum of all that is seen. */
INLINE float look(const struct bank *bank, const struct workplace *at, const float *response, int nodes) {
    const int side = bank->side;
    float rows[MOST_NODES], cols[MOST_NODES] = {0}, total = 0;
    for (int j = 0; j < nodes; j += TOGETHER)
        weigh_squares(response, side, bank->nodes + j, nodes, side, TOGETHER, at->seen + (long)j * side);
    for (int first = 0; first < nodes; first += 4) { /* four at a time, so that sums need not wait for each other */
        float at_nodes[4][MOST_NODES] = {0};
        for (int x = 0; x < side; x++)
            UNROLL for (int n = 0; n < 4; n++) {
                const float seen = at->seen[(long)(first + n) * side + x];
                for (int k = 0; k < nodes; k++) at_nodes[n][k] += seen * bank->nodes[(long)x * nodes + k];
            }
        for (int n = 0; n < 4; n++) {
            rows[first + n] = 0;
            for (int k = 0; k < nodes; k++) rows[first + n] += at_nodes[n][k], cols[k] += at_nodes[n][k];
            total += rows[first + n];
            for (int x = 0; x < side; x += LANES) {
                vec sum = {0};
                for (int k = 0; k < nodes; k++)
                    sum += *(const vec *)(bank->nodes_across + (long)k * side + x) * at_nodes[n][k];
                *(vec *)(at->spread + (long)(first + n) * side + x) = sum;
            }
        }
    }
    measure_excess(bank, rows, nodes, at->excess);
    measure_excess(bank, cols, nodes, at->excess + side);
    return total;
}

/* Forget the candidates that have turned out too weak. */
static void thin_out(struct contest *contest) {
    int kept = 0;
    for (int n = 0; n < contest->count; n++)
        if (contest->highest[n] >= contest->least[0] * (1.0f - SLACK)) {
            contest->places[kept] = contest->places[n];
            contest->highest[kept++] = contest->highest[n];
        }
    contest->count = kept;
}

/* Look at what passes of a row. */
static void take_row(const struct bank *bank, const struct workplace *at, const float *response, int y,
                     struct contest *contest) {
    const int side = bank->side;
    const float low = bank->low * bank->low * (1.0f - SLACK), high = bank->high * bank->high * (1.0f + SLACK);
    for (int x = 0; x < side; x++) {
        if (x % 2 == 0 && !*(const uint64_t *)(at->found + x)) x++;
        if (!at->found[x]) continue;
        const float answer = response[(long)y * side + x], square = at->row[x];
        const float less = low * square - at->excess[y] - at->excess[side + x];
        const float most = answer / (sqrtf(less > 0 ? less : 0) + bank->floor);
        if (most < contest->least[0] * (1.0f - SLACK)) continue;
        contest->places[contest->count] = y * side + x, contest->highest[contest->count++] = most;
        const float least = answer / (sqrtf(high * square) + bank->floor);
        if (least > contest->least[0]) insert(contest->least, bank->strongest, least);
    }
}

/* Find the pixels that may be among the strongest. Without root and quotient: response / (root + floor) reaches a
 * positive bound where (response - bound * floor)^2 reaches (bound * root)^2. */
INLINE void compete(const struct bank *bank, const struct workplace *at, const float *response, int nodes,
                    struct contest *contest) {
    const int side = bank->side;
    const float low = bank->low * bank->low * (1.0f - SLACK);
    for (int y = 0; y < side; y++) {
        const float bound = contest->least[0] * (1.0f - SLACK);
        ivec any = {0};
        const float *answers = response + (long)y * side, least = bound * bank->floor, wider = at->excess[y];
        float weights[MOST_NODES]; /* a copy, which no store of results can change */
        for (int j = 0; j < nodes; j++) weights[j] = bank->nodes[(long)y * nodes + j];
        for (int x = 0; x < side; x += STRIP) {
            const float *spread = at->spread + x;
            vec sums[2][2] = {0};
            for (int j = 0; j < nodes; j += 2, spread += 2 * side)
                UNROLL for (int n = 0; n < 4; n++)
                    sums[n / 2][n % 2] += *(const vec *)(spread + n / 2 * side + n % 2 * LANES) * weights[j + n / 2];
            UNROLL for (int n = 0; n < 2; n++) {
                const int place = x + n * LANES;
                const vec square = sums[0][n] + sums[1][n];
                const vec excess = *(const vec *)(at->excess + side + place) + wider;
                const vec above = *(const vec *)(answers + place) - least;
                const ivec passes = (above > 0) & (above * above > (square * low - excess) * (bound * bound));
                *(vec *)(at->row + place) = square;
                *(ivec *)(at->found + place) = passes;
                any |= passes;
            }
        }
        const wide_ivec halves = (wide_ivec)any;
        int64_t some = 0;
        for (int lane = 0; lane < LANES / 2; lane++) some |= halves[lane];
        if (some) take_row(bank, at, response, y, contest);
    }
}

/* The answers of candidates by the sum over the whole window; return the mean of the strongest. */
static double decide(const struct bank *bank, const struct workplace *at, const float *response,
                     const struct contest *contest) {
    const int side = bank->side;
    float strongest[MOST_STRONGEST] = {0};
    for (int first = 0, next; first < contest->count; first = next) {
        int rows[TOGETHER], count = 0;
        for (next = first; next < contest->count; next++) { /* candidates are in reading order */
            const int row = contest->places[next] / side;
            if (count && rows[count - 1] == row) continue;
            if (count == TOGETHER) break;
            rows[count++] = row;
        }
        for (int n = 0; n < TOGETHER; n++)
            for (int y = 0; y < side; y++)
                at->weights[y * TOGETHER + n] = bank->window[(long)rows[n < count ? n : 0] * side + y];
        if (count > TOGETHER / 2)
            weigh_squares(response, side, at->weights, TOGETHER, side, TOGETHER, at->sums);
        else
            weigh_squares(response, side, at->weights, TOGETHER, side, TOGETHER / 2, at->sums);
        for (int m = first, n = 0; m < next; m++) {
            while (rows[n] != contest->places[m] / side) n++;
            const float *window = bank->window + (long)(contest->places[m] % side) * side;
            vec total = {0};
            for (int x = 0; x < side; x += LANES)
                total += *(const vec *)(window + x) * *(const vec *)(at->sums + (long)n * side + x);
            const float answer = response[contest->places[m]] / (sqrtf(sum_of(total)) + bank->floor);
            if (answer > strongest[0]) insert(strongest, bank->strongest, answer);
        }
    }
    double sum = 0;
    for (int n = 0; n < bank->strongest; n++) sum += strongest[n];
    return sum / bank->strongest;
}

/* The mean of the strongest pixels of one response, or NaN where this way cannot tell: numbers that are not finite, or too
 * few pixels that answer positively. `guess` is what the least of the strongest may answer: a
 * good one saves time, a bad one costs some, and what comes out is the same. */
INLINE double pool(const struct bank *bank, const struct workplace *at, const float *response, int nodes,
                   float *guess) {
    struct contest contest = {.places = at->places, .highest = at->highest};
    const float total = look(bank, at, response, nodes);
    if (total == 0) return 0;
    if (!(total < INFINITY)) return NAN;
    for (float from = *guess;; from = 0) {
        contest.count = 0;
        for (int n = 0; n < bank->strongest; n++) contest.least[n] = from;
        compete(bank, at, response, nodes, &contest);
        if (contest.least[0] > from || from == 0) break;
    }
    if (!(contest.least[0] > 0)) return NAN;
    *guess = contest.least[0] * GUESS;
    thin_out(&contest);
    return decide(bank, at, response, &contest);
}

/* Pool `count` patches that lie one after the other, as uint16 or, where that is null, as float32: (count, scales). */
void unary_pool(const struct bank *bank, const uint16_t *pixels, const float *values, int count, void *memory,
                double *pooled) {
    char *rest = memory;
    const struct workplace at = lay_out(bank, &rest);
    const long size = (long)bank->side * bank->side;
    float guesses[MOST_SCALES] = {0};
    for (int n = 0; n < count; n++) {
        const float mean = take_in(bank, &at, pixels ? pixels + n * size : 0, values ? values + n * size : 0);
        for (int scale = 0; scale < bank->scales; scale += GROUP) {
            const int together = bank->scales - scale < GROUP ? bank->scales - scale : GROUP;
            respond(bank, &at, scale, together);
            for (int which = 0; which < together; which++) {
                const float *response = at.response[which];
                float *guess = guesses + scale + which;
                double *answer = pooled + (long)n * bank->scales + scale + which;
                if (mean - mean != 0)
                    *answer = NAN;
                else if (bank->count_nodes == FEW_NODES)
                    *answer = pool(bank, &at, response, FEW_NODES, guess);
                else
                    *answer = pool(bank, &at, response, bank->count_nodes, guess);
            }
        }
    }
}

/* --- maps -------------------------------------------------------------------------------------------------------- */

/* Where the window's weights on places `first` to `last` are not 0. */
INLINE void find_span(const struct bank *bank, int first, int last, int *from, int *to) {
    *from = first > bank->window_reach ? first - bank->window_reach : 0;
    *to = last + bank->window_reach < bank->side ? last + bank->window_reach : bank->side;
}

/* Put TOGETHER rows of the answers of one scale, standardised, on the map, where they exceed it. `sums` are the squares
 * weighed along the columns. */
static void put_rows(const struct bank *bank, const float *sums, const float *response, float mean, float factor,
                     float *map) {
    const int side = bank->side;
    for (int x = 0; x < side; x += STRIP) {
        vec total[TOGETHER][2] = {0};
        int from, to;
        find_span(bank, x, x + STRIP, &from, &to);
        for (int place = from; place < to; place++) {
            const vec *window = (const vec *)(bank->window + (long)place * side + x);
            const vec weights[2] = {window[0], window[1]};
            UNROLL for (int n = 0; n < TOGETHER; n++) {
                const float sum = sums[(long)n * side + place];
                total[n][0] += weights[0] * sum, total[n][1] += weights[1] * sum;
            }
        }
        for (int n = 0; n < TOGETHER; n++)
            for (int place = 0; place < STRIP; place++) {
                const float root = sqrtf(((const float *)total[n])[place]);
                const float answer = (response[(long)n * side + x + place] / (root + bank->floor) - mean) * factor;
                float *to_change = map + (long)n * side + x + place;
                if (answer > *to_change || answer != answer) *to_change = answer; /* a NaN is put down, and stays */
            }
    }
}

/* Maps, (count, side, side), of `count` patches, as `unary_pool` takes them: the largest answer over scales, less the
 * scale's mean, times its factor. */
void unary_map(const struct bank *bank, const uint16_t *pixels, const float *values, int count, void *memory,
               const float *means, const float *factors, float *maps) {
    char *rest = memory;
    const struct workplace at = lay_out(bank, &rest);
    const int side = bank->side;
    const long size = (long)side * side;
    for (int n = 0; n < count; n++) {
        float *map = maps + n * size;
        for (long place = 0; place < size; place++) map[place] = -INFINITY;
        take_in(bank, &at, pixels ? pixels + n * size : 0, values ? values + n * size : 0);
        for (int scale = 0; scale < bank->scales; scale += GROUP) {
            const int together = bank->scales - scale < GROUP ? bank->scales - scale : GROUP;
            respond(bank, &at, scale, together);
            for (int which = 0; which < together; which++)
                for (int y = 0; y < side; y += TOGETHER) {
                    const float *response = at.response[which];
                    int from, to;
                    find_span(bank, y, y + TOGETHER, &from, &to);
                    weigh_squares(response + (long)from * side, side, bank->window + (long)from * side + y, side,
                                  to - from, TOGETHER, at.sums);
                    put_rows(bank, at.sums, response + (long)y * side, means[scale + which], factors[scale + which],
                             map + (long)y * side);
                }
        }
    }
}
