/*
 * Loss and gradient of the autoencoder of Wei et al. 2018 (equations 2 and 3) for batches of grey patches.
 *
 * Why not a library: the first layers have 1, 2 and 4 feature maps, so that vector lanes which run over maps stay
 * empty. Here they run over patches. LANES patches are interleaved pixel by pixel and go through the whole network,
 * forward and backward, by themselves; their activations (2 MB at 128 x 128) stay near the processor. Two more passes
 * over memory are saved: the input stays uint16 and the reconstruction is never stored whole, because the outermost
 * layers are computed in strips of a few rows; and the gradient of an activation overwrites it.
 *
 * One shape serves all ten layers. A convolution of stride 2 in the encoder and its mirror image in the decoder link a
 * big image (side 2s, C maps) with a small one (side s, K maps) through weights [K][C][3][3]:
 *
 *     gather    small[k](y, x) = sum over c, i, j of weight[k][c][i][j] * big[c](2y + i - 1, 2x + j - 1)
 *     spread    big[c](2y + i - 1, 2x + j - 1) += weight[k][c][i][j] * small[k](y, x)
 *     weigh     weight'[k][c][i][j] = sum over y, x of small[k](y, x) * big[c](2y + i - 1, 2x + j - 1)
 *
 * The encoder goes forward by `gather` and back by `spread`, the decoder the other way; `weigh` is both weight
 * gradients. Plain C11 with the vector extension of gcc and clang; the compiler maps `vec` to what the processor has.
 */

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__AVX512F__) || defined(__aarch64__) /* 32 registers: twice the tile */
#define ROOM 2
#else
#define ROOM 1
#endif
#define STRIP 4 /* rows of the small image, at the outermost layers */
#define AHEAD 4 /* rows to fetch ahead from the images: they lie far apart, which the hardware does not guess */
#define MOST_LEVELS 12
#define TAPS 9
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint16_t packed_pixels __attribute__((vector_size(2 * LANES)));

/* LANES images of one layer; map c, row y, column x lies at first[c * plane + (y + 1) * (side + 2) + x + 1]. The border
 * of one pixel on all sides is the convolutions' zero padding. `rows` may be fewer than `side` (see `strip_of`). */
struct image {
    vec *first;
    long plane;
    int maps, rows, side;
};

/* What a network looks like: level 0 is the patch, level `levels` the bottleneck. */
struct shape {
    int levels, side[MOST_LEVELS + 1], maps[MOST_LEVELS + 1];
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

/* --- the whole network -------------------------------------------------------------------------------------------- */

/* Parameters and gradients come as 4 * levels pointers: weights and biases of the encoder's layers from the patch down,
 * then of the decoder's from the bottleneck up. */
enum { WEIGHT, BIAS };

static int encoder_at(int level) { return 2 * (level - 1); }
static int decoder_at(const struct shape *shape, int level) { return 2 * (2 * shape->levels - level); }

static struct shape shape_of(int levels, int side, const int *maps) {
    struct shape shape = {.levels = levels, .side = {side}, .maps = {1}};
    for (int level = 1; level <= levels; level++) {
        shape.side[level] = shape.side[level - 1] / 2;
        shape.maps[level] = maps[level - 1];
    }
    return shape;
}

static long weights_of(const struct shape *shape, int level) {
    return (long)shape->maps[level] * shape->maps[level - 1] * TAPS;
}

/* Write the weights in the order in which `gather` and `spread` read them. */
static float *pack_gather(const float *from, float *to, int maps, int big_maps) {
    const int tile = gather_maps(maps);
    for (int k = 0; k < maps; k += tile)
        for (int c = 0; c < big_maps; c++)
            for (int tap = 0; tap < TAPS; tap++)
                for (int m = 0; m < tile; m++) *to++ = from[((long)(k + m) * TAPS + tap) * big_maps + c];
    return to;
}

static float *pack_spread(const float *from, float *to, int maps, int big_maps) {
    const int tile = spread_maps(big_maps);
    for (int c = 0; c < big_maps; c += tile)
        for (int k = 0; k < maps; k++)
            for (int tap = 0; tap < TAPS; tap++)
                for (int m = 0; m < tile; m++) *to++ = from[((long)k * TAPS + tap) * big_maps + c + m];
    return to;
}

/* Floats that `unary_pack` writes. */
long unary_packed_size(int levels, int side, const int *maps) {
    const struct shape shape = shape_of(levels, side, maps);
    long total = 0;
    for (int level = 1; level <= levels; level++) total += 4 * weights_of(&shape, level);
    return total;
}

/* Called once a step: for every level the encoder's weights for `gather` and `spread`, then the decoder's. */
void unary_pack(int levels, int side, const int *maps, const float *const *parameters, float *packed) {
    const struct shape shape = shape_of(levels, side, maps);
    for (int level = 1; level <= levels; level++)
        for (int half = 0; half < 2; half++) {
            const float *weight = parameters[(half ? decoder_at(&shape, level) : encoder_at(level)) + WEIGHT];
            packed = pack_gather(weight, packed, shape.maps[level], shape.maps[level - 1]);
            packed = pack_spread(weight, packed, shape.maps[level], shape.maps[level - 1]);
        }
}

/* What one thread works in. */
struct workplace {
    struct image encoded[MOST_LEVELS + 1], decoded[MOST_LEVELS + 1], window;
    packed_pixels *pixels;
};

static struct image take(vec **memory, int maps, int rows, int side) {
    const struct image image = {*memory, (long)(rows + 2) * (side + 2), maps, rows, side};
    *memory += maps * image.plane;
    return image;
}

static int strip_rows(const struct shape *shape) {
    return shape->side[1] % STRIP == 0 ? STRIP : 1;
}

static struct workplace lay_out(const struct shape *shape, vec *memory) {
    struct workplace at;
    for (int level = 1; level <= shape->levels; level++) {
        at.encoded[level] = take(&memory, shape->maps[level], shape->side[level], shape->side[level]);
        at.decoded[level] = level < shape->levels
                                ? take(&memory, shape->maps[level], shape->side[level], shape->side[level])
                                : at.encoded[level];
    }
    at.window = take(&memory, 1, 2 * strip_rows(shape), shape->side[0]);
    at.pixels = (packed_pixels *)memory;
    return at;
}

/* Bytes of memory that a thread needs, aligned to 64 bytes and zero at first; the borders stay so. */
long unary_workplace_size(int levels, int side, const int *maps) {
    const struct shape shape = shape_of(levels, side, maps);
    const struct workplace at = lay_out(&shape, (vec *)0);
    return (long)(at.pixels + (long)side * side);
}

int unary_lanes(void) { return LANES; }

struct intensity {
    float mean, scale;
};

/* Lay LANES patches side by side, pixel by pixel; where there are fewer, the first stands in for the missing ones. Four
 * patches at a time, because four pixels fit a machine word. */
static void interleave(const uint16_t *const *patches, const int64_t *strides, const int64_t *which, int count,
                       int side, packed_pixels *to) {
    uint64_t *words = (uint64_t *)to;
    for (int y = 0; y < side; y++)
        for (int n = 0; n < LANES; n += 4) {
            const uint16_t *row[4];
            for (int m = 0; m < 4; m++) {
                const int64_t patch = which[n + m < count ? n + m : 0];
                row[m] = patches[patch] + y * strides[patch];
                if (y + AHEAD < side)
                    for (int x = 0; x < side; x += 32) __builtin_prefetch(row[m] + AHEAD * strides[patch] + x);
            }
            uint64_t *word = words + ((long)y * side * LANES + n) / 4;
            for (int x = 0; x < side; x++)
                word[(long)x * LANES / 4] = row[0][x] | (uint64_t)row[1][x] << 16 | (uint64_t)row[2][x] << 32 |
                                            (uint64_t)row[3][x] << 48;
        }
}

INLINE vec intensity_of(packed_pixels pixels) {
    return __builtin_convertvector(__builtin_convertvector(pixels, ivec), vec) * (1.0f / 65535.0f);
}

/* Fill the window with standardised rows from 2 * row - 1 on; the row above the patch is padding. */
static void show(const struct workplace *at, int row, struct intensity intensity) {
    const struct image window = at->window;
    const float factor = 1.0f / intensity.scale;
    for (int y = -1; y < window.rows; y++) {
        vec *to = window.first + (long)(y + 1) * (window.side + 2) + 1;
        const packed_pixels *from = at->pixels + (long)(2 * row + y) * window.side;
        for (int x = 0; x < window.side; x++)
            to[x] = 2 * row + y < 0 ? (vec){0} : (intensity_of(from[x]) - intensity.mean) * factor;
    }
}

/* Replace the reconstruction in the window by the gradient of the loss; return the sum of squared errors. */
static double compare(const struct workplace *at, int row, vec present, float weight, struct intensity intensity) {
    const struct image window = at->window;
    vec total = {0};
    for (int y = 0; y < window.rows; y++) {
        vec *restored = window.first + (long)(y + 1) * (window.side + 2) + 1;
        const packed_pixels *from = at->pixels + (long)(2 * row + y) * window.side;
        for (int x = 0; x < window.side; x++) {
            const vec error = (restored[x] * intensity.scale + intensity.mean - intensity_of(from[x])) * present;
            total += error * error;
            restored[x] = error * (2.0f * weight * intensity.scale);
        }
    }
    return sum_of(total);
}

/* Up to LANES patches through the network and back; gradients are added to `gradients`, laid out as `parameters`. */
static double learn(const struct shape *shape, const struct workplace *at, const float *const *parameters,
                    const float *packed, float *const *gradients, int count, float weight, struct intensity intensity) {
    const int levels = shape->levels, rows = strip_rows(shape);
    const float *encode_gather[MOST_LEVELS + 1], *encode_spread[MOST_LEVELS + 1];
    const float *decode_gather[MOST_LEVELS + 1], *decode_spread[MOST_LEVELS + 1];
    for (int level = 1; level <= levels; level++) {
        const long size = weights_of(shape, level);
        encode_gather[level] = packed;
        encode_spread[level] = packed + size;
        decode_gather[level] = packed + 2 * size;
        decode_spread[level] = packed + 3 * size;
        packed += 4 * size;
    }
    const struct image *encoded = at->encoded, *decoded = at->decoded, window = at->window;

    for (int row = 0; row < shape->side[1]; row += rows) {
        show(at, row, intensity);
        gather_relu(window, strip_of(encoded[1], row, rows), encode_gather[1], parameters[encoder_at(1) + BIAS]);
    }
    for (int level = 2; level <= levels; level++)
        gather_relu(encoded[level - 1], encoded[level], encode_gather[level], parameters[encoder_at(level) + BIAS]);
    for (int level = levels; level > 1; level--)
        spread_relu(decoded[level], decoded[level - 1], decode_spread[level],
                    parameters[decoder_at(shape, level) + BIAS]);

    vec present = {0};
    for (int n = 0; n < count; n++) present[n] = 1.0f;
    double loss = 0;
    const int last = decoder_at(shape, 1);
    const long line = window.side + 2;
    memset(window.first, 0, line * sizeof(vec));
    for (int row = 0; row < shape->side[1]; row += rows) {
        const struct image strip = strip_of(decoded[1], row, rows);
        spread_linear(strip, window, decode_spread[1], parameters[last + BIAS]);
        loss += compare(at, row, present, weight, intensity);
        add_up(window, gradients[last + BIAS]);
        weigh(strip, window, gradients[last + WEIGHT]);
        gather_gradient(window, strip, decode_gather[1]);
        memcpy(window.first, window.first + window.rows * line, line * sizeof(vec)); /* the next strip's row above */
    }
    for (int level = 2; level <= levels; level++) {
        add_up(decoded[level - 1], gradients[decoder_at(shape, level) + BIAS]);
        weigh(decoded[level], decoded[level - 1], gradients[decoder_at(shape, level) + WEIGHT]);
        gather_gradient(decoded[level - 1], decoded[level], decode_gather[level]);
    }
    for (int level = levels; level > 1; level--) {
        add_up(encoded[level], gradients[encoder_at(level) + BIAS]);
        weigh(encoded[level], encoded[level - 1], gradients[encoder_at(level) + WEIGHT]);
        spread_gradient(encoded[level], encoded[level - 1], encode_spread[level]);
    }
    add_up(encoded[1], gradients[encoder_at(1) + BIAS]);
    for (int row = 0; row < shape->side[1]; row += rows) {
        show(at, row, intensity);
        weigh(strip_of(encoded[1], row, rows), window, gradients[encoder_at(1) + WEIGHT]);
    }
    return loss;
}

/* Floats in all parameters together. */
static long parameters_of(const struct shape *shape, long *sizes) {
    long total = 0;
    for (int level = 1; level <= shape->levels; level++) {
        const int encoder = encoder_at(level), decoder = decoder_at(shape, level);
        sizes[encoder + WEIGHT] = sizes[decoder + WEIGHT] = weights_of(shape, level);
        sizes[encoder + BIAS] = shape->maps[level];
        sizes[decoder + BIAS] = shape->maps[level - 1];
    }
    for (int n = 0; n < 4 * shape->levels; n++) total += sizes[n];
    return total;
}

/* One thread's part of a batch. Threads take groups of LANES patches from the counter `next` until none is left. Every
 * group has its own gradient and sum of squares, which the caller adds up in order, so that the result does not depend
 * on which thread took what, nor on their number. The gradient is that of `weight` times the sum of squares. */
void unary_learn(int levels, int side, const int *maps, const float *const *parameters, const float *packed,
                 const uint16_t *const *patches, const int64_t *strides, const int64_t *which, int count, float mean,
                 float scale, float weight, int *next, void *memory, float *gradients, double *squares) {
    const struct shape shape = shape_of(levels, side, maps);
    const struct workplace at = lay_out(&shape, memory);
    long sizes[4 * MOST_LEVELS];
    const long total = parameters_of(&shape, sizes);
    const int groups = (count + LANES - 1) / LANES;
    for (int group; (group = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < groups;) {
        const int first = group * LANES, taken = count - first < LANES ? count - first : LANES;
        float *own[4 * MOST_LEVELS], *start = gradients + group * total;
        memset(start, 0, total * sizeof(float));
        for (int n = 0; n < 4 * levels; start += sizes[n++]) own[n] = start;
        interleave(patches, strides, which + first, taken, side, at.pixels);
        squares[group] = learn(&shape, &at, parameters, packed, own, taken, weight, (struct intensity){mean, scale});
    }
}
