/*
 * Convolutions of stride 2 with 3 x 3 kernels, their mirror images and their gradients, for LANES images at once.
 *
 * One shape serves them all. A big image (side 2s, C maps) and a small one (side s, K maps) are linked through weights
 * [K][C][3][3]:
 *
 *     gather    small[k](y, x) = sum over c, i, j of weight[k][c][i][j] * big[c](2y + i - 1, 2x + j - 1)
 *     spread    big[c](2y + i - 1, 2x + j - 1) += weight[k][c][i][j] * small[k](y, x)
 *     weigh     weight'[k][c][i][j] = sum over y, x of small[k](y, x) * big[c](2y + i - 1, 2x + j - 1)
 *
 * A convolution goes forward by `gather` and back by `spread`, a transposed convolution the other way; `weigh` is both
 * weight gradients.
 */

#include "vectors.h"

#if defined(__AVX512F__) || defined(__aarch64__) /* 32 registers: twice the tile */
#define ROOM 2
#else
#define ROOM 1
#endif
#define TAPS 9

/* LANES images of one layer; map c, row y, column x lies at first[c * plane + (y + 1) * (side + 2) + x + 1]. The border
 * of one pixel on all sides is the convolutions' zero padding. `rows` may be fewer than `side` (see `strip_of`). */
struct image {
    vec *first;
    long plane;
    int maps, rows, side;
};

/* How a result is put down: as it is; through a ReLU; or over the activation whose gradient it is, where that lived. */
enum ending { LINEAR, RELU, GRADIENT };

INLINE void put(vec *to, vec value, enum ending ending) {
    if (ending == RELU) value = (vec)((ivec)value & ~(value < 0)); /* not max(): a NaN must stay one, to be noticed */
    if (ending == GRADIENT) value = (vec)((ivec)value & (*to > 0));
    *to = value;
}

static struct image strip_of(struct image whole, int row, int rows) {
    whole.first += (long)row * (whole.side + 2);
    whole.rows = rows;
    return whole;
}

/* --- gather ------------------------------------------------------------------------------------------------------ */

INLINE int gather_maps(int maps) { return maps % 4 == 0 ? 4 : maps % 2 == 0 ? 2 : 1; }

/* `tile` maps times `across` columns are kept in registers. */
INLINE void gather_tile(struct image big, struct image small, const float *weights, const float *bias,
                        enum ending ending, int tile, int across) {
    const int stride = big.side + 2;
    for (int k = 0; k < small.maps; k += tile, weights += (long)tile * big.maps * TAPS) {
        for (int y = 0; y < small.rows; y++) {
            vec *out = small.first + k * small.plane + (long)(y + 1) * (small.side + 2) + 1;
            for (int x = 0; x < small.side; x += across) {
                vec sum[4][4 * ROOM];
                UNROLL for (int m = 0; m < tile; m++)
                    UNROLL for (int n = 0; n < across; n++) sum[m][n] = (vec){0} + (bias ? bias[k + m] : 0.0f);
                const vec *in = big.first + (long)2 * y * stride + 2 * x;
                const float *weight = weights;
                for (int c = 0; c < big.maps; c++, in += big.plane)
                    UNROLL for (int i = 0; i < 3; i++)
                        UNROLL for (int j = 0; j < 3; j++, weight += tile)
                            UNROLL for (int m = 0; m < tile; m++)
                                UNROLL for (int n = 0; n < across; n++)
                                    sum[m][n] += weight[m] * in[i * stride + 2 * n + j];
                UNROLL for (int m = 0; m < tile; m++)
                    UNROLL for (int n = 0; n < across; n++) put(out + m * small.plane + x + n, sum[m][n], ending);
            }
        }
    }
}

INLINE void gather(struct image big, struct image small, const float *weights, const float *bias,
                   enum ending ending) {
    const int tile = gather_maps(small.maps);
    if (tile == 4 && small.side % (2 * ROOM) == 0)
        gather_tile(big, small, weights, bias, ending, 4, 2 * ROOM);
    else if (tile == 4)
        gather_tile(big, small, weights, bias, ending, 4, 1);
    else if (tile == 2 && small.side % (4 * ROOM) == 0)
        gather_tile(big, small, weights, bias, ending, 2, 4 * ROOM);
    else if (tile == 2)
        gather_tile(big, small, weights, bias, ending, 2, 1);
    else
        gather_tile(big, small, weights, bias, ending, 1, 1);
}

static void gather_relu(struct image big, struct image small, const float *weights, const float *bias) {
    gather(big, small, weights, bias, RELU);
}

static void gather_gradient(struct image big, struct image small, const float *weights) {
    gather(big, small, weights, 0, GRADIENT);
}

/* --- spread ------------------------------------------------------------------------------------------------------ */

INLINE int spread_maps(int maps) { return maps % 2 == 0 ? 2 : 1; }

/* A block of 2 x 2 big pixels needs 2 x 2 small ones and each of the nine weights once; `tile` maps times `across`
 * blocks are kept in registers. */
INLINE void spread_tile(struct image small, struct image big, const float *weights, const float *bias,
                        enum ending ending, int tile, int across) {
    const int stride = small.side + 2;
    for (int c = 0; c < big.maps; c += tile, weights += (long)tile * small.maps * TAPS) {
        for (int y = 0; y < small.rows; y++) {
            vec *out = big.first + c * big.plane + (long)(2 * y + 1) * (big.side + 2) + 1;
            for (int x = 0; x < small.side; x += across) {
                vec sum[2][2 * ROOM][4];
                UNROLL for (int m = 0; m < tile; m++)
                    UNROLL for (int n = 0; n < across; n++)
                        UNROLL for (int corner = 0; corner < 4; corner++)
                            sum[m][n][corner] = (vec){0} + (bias ? bias[c + m] : 0.0f);
                const vec *in = small.first + (long)(y + 1) * stride + x + 1;
                const float *w = weights;
                for (int k = 0; k < small.maps; k++, in += small.plane, w += TAPS * tile)
                    UNROLL for (int m = 0; m < tile; m++)
                        UNROLL for (int n = 0; n < across; n++) {
                            const vec here = in[n], right = in[n + 1];
                            const vec below = in[stride + n], both = in[stride + n + 1];
                            vec *to = sum[m][n];
                            to[0] += w[4 * tile + m] * here;
                            to[1] += w[5 * tile + m] * here;
                            to[2] += w[7 * tile + m] * here;
                            to[3] += w[8 * tile + m] * here;
                            to[1] += w[3 * tile + m] * right;
                            to[3] += w[6 * tile + m] * right;
                            to[2] += w[1 * tile + m] * below;
                            to[3] += w[2 * tile + m] * below;
                            to[3] += w[0 * tile + m] * both;
                        }
                UNROLL for (int m = 0; m < tile; m++)
                    UNROLL for (int n = 0; n < across; n++)
                        UNROLL for (int corner = 0; corner < 4; corner++)
                            put(out + m * big.plane + corner / 2 * (big.side + 2) + 2 * (x + n) + corner % 2,
                                sum[m][n][corner], ending);
            }
        }
    }
}

INLINE void spread(struct image small, struct image big, const float *weights, const float *bias,
                   enum ending ending) {
    const int tile = spread_maps(big.maps);
    if (tile == 2 && small.side % ROOM == 0)
        spread_tile(small, big, weights, bias, ending, 2, ROOM);
    else if (tile == 2)
        spread_tile(small, big, weights, bias, ending, 2, 1);
    else if (small.side % (2 * ROOM) == 0)
        spread_tile(small, big, weights, bias, ending, 1, 2 * ROOM);
    else
        spread_tile(small, big, weights, bias, ending, 1, 1);
}

static void spread_relu(struct image small, struct image big, const float *weights, const float *bias) {
    spread(small, big, weights, bias, RELU);
}

static void spread_linear(struct image small, struct image big, const float *weights, const float *bias) {
    spread(small, big, weights, bias, LINEAR);
}

static void spread_gradient(struct image small, struct image big, const float *weights) {
    spread(small, big, weights, 0, GRADIENT);
}

/* --- weight and bias gradients ------------------------------------------------------------------------------------ */

INLINE float sum_of(vec v) {
#ifdef __clang__
    float total = 0;
    for (int n = 0; n < LANES; n++) total += v[n];
    return total;
#else /* left to itself, gcc takes the lanes out one by one */
    ivec lane;
    UNROLL for (int n = 0; n < LANES; n++) lane[n] = n;
    UNROLL for (int half = LANES / 2; half; half /= 2) v += __builtin_shuffle(v, lane ^ half);
    return v[0];
#endif
}

/* Adds to gradient[k][i][j][c]: the order in which torch keeps "channels last" weights. */
INLINE void weigh_tile(struct image small, struct image big, float *gradient, int tile) {
    const int stride = big.side + 2;
    for (int k = 0; k < small.maps; k += tile)
        for (int c = 0; c < big.maps; c++) {
            vec sum[2][TAPS];
            UNROLL for (int m = 0; m < tile; m++)
                UNROLL for (int tap = 0; tap < TAPS; tap++) sum[m][tap] = (vec){0};
            for (int y = 0; y < small.rows; y++) {
                const vec *one = small.first + k * small.plane + (long)(y + 1) * (small.side + 2) + 1;
                const vec *other = big.first + c * big.plane + (long)2 * y * stride;
                for (int x = 0; x < small.side; x++)
                    UNROLL for (int m = 0; m < tile; m++)
                        UNROLL for (int tap = 0; tap < TAPS; tap++)
                            sum[m][tap] += one[m * small.plane + x] * other[tap / 3 * stride + 2 * x + tap % 3];
            }
            UNROLL for (int m = 0; m < tile; m++)
                UNROLL for (int tap = 0; tap < TAPS; tap++)
                    gradient[((long)(k + m) * TAPS + tap) * big.maps + c] += sum_of(sum[m][tap]);
        }
}

static void weigh(struct image small, struct image big, float *gradient) {
    if (ROOM == 2 && small.maps % 2 == 0)
        weigh_tile(small, big, gradient, 2);
    else
        weigh_tile(small, big, gradient, 1);
}

static void add_up(struct image image, float *gradient) {
    for (int c = 0; c < image.maps; c++) {
        vec sum[4] = {{0}};
        for (int y = 0; y < image.rows; y++) {
            const vec *row = image.first + c * image.plane + (long)(y + 1) * (image.side + 2) + 1;
            for (int x = 0; x < image.side; x++) sum[x % 4] += row[x];
        }
        gradient[c] += sum_of(sum[0] + sum[1] + sum[2] + sum[3]);
    }
}
