/*
 * Loss and gradient of the autoencoder of Wei et al. 2018 (equations 2 and 3) for batches of grey patches.
 *
 * Why not a library: the first layers have 1, 2 and 4 feature maps, so that vector lanes which run over maps stay
 * empty. Here they run over patches. LANES patches are interleaved pixel by pixel and go through the whole network,
 * forward and backward, by themselves; their activations (2 MB at 128 x 128) stay near the processor. Two more passes
 * over memory are saved: the input stays uint16 and the reconstruction is never stored whole, because the outermost
 * layers are computed in strips of a few rows; and the gradient of an activation overwrites it.
 */

#include <stdint.h>
#include <string.h>

#include "convolutions.h"

#define STRIP 4 /* rows of the small image, at the outermost layers */
#define AHEAD 4 /* rows to fetch ahead from the images: they lie far apart, which the hardware does not guess */
#define MOST_LEVELS 12

typedef uint16_t packed_pixels __attribute__((vector_size(2 * LANES)));

/* What a network looks like: level 0 is the patch, level `levels` the bottleneck. */
struct shape {
    int levels, side[MOST_LEVELS + 1], maps[MOST_LEVELS + 1];
};

/* One layer's weights in the order of `gather` and of `spread`, its bias, and where its gradient goes. */
struct layer {
    const float *gather, *spread, *bias;
    float *weight_gradient, *bias_gradient;
};

/* Those between a level and the next larger one. */
struct network {
    struct layer encoder[MOST_LEVELS + 1], decoder[MOST_LEVELS + 1];
};

/* Parameters come as 4 * levels pointers: weights, in torch's memory order "channels last", and biases of the encoder's
 * layers from the patch down, then of the decoder's from the bottleneck up. A gradient is all of that in one array. */
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
static void interleave(const uint16_t *const *patches, const int64_t *strides, int count, int side,
                       packed_pixels *to) {
    uint64_t *words = (uint64_t *)to;
    for (int y = 0; y < side; y++)
        for (int n = 0; n < LANES; n += 4) {
            const uint16_t *row[4];
            for (int m = 0; m < 4; m++) {
                const int patch = n + m < count ? n + m : 0;
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

/* From the interleaved patches to the last layer but one. */
static void encode_and_decode(const struct shape *shape, const struct workplace *at, const struct network *network,
                              struct intensity intensity) {
    const struct image *encoded = at->encoded, *decoded = at->decoded;
    const struct layer *encoder = network->encoder, *decoder = network->decoder;
    const int rows = strip_rows(shape);
    for (int row = 0; row < shape->side[1]; row += rows) {
        show(at, row, intensity);
        gather_relu(at->window, strip_of(encoded[1], row, rows), encoder[1].gather, encoder[1].bias);
    }
    for (int level = 2; level <= shape->levels; level++)
        gather_relu(encoded[level - 1], encoded[level], encoder[level].gather, encoder[level].bias);
    for (int level = shape->levels; level > 1; level--)
        spread_relu(decoded[level], decoded[level - 1], decoder[level].spread, decoder[level].bias);
}

/* Turn the reconstruction in the window into the signed error, input minus reconstruction; give every patch its rows of
 * that, and add its squares up. */
static void hand_out(const struct workplace *at, int row, int count, struct intensity intensity, float *errors,
                     double *squares) {
    const struct image window = at->window;
    vec total = {0};
    for (int y = 0; y < window.rows; y++) {
        vec *restored = window.first + (long)(y + 1) * (window.side + 2) + 1;
        const packed_pixels *from = at->pixels + (long)(2 * row + y) * window.side;
        for (int x = 0; x < window.side; x++) {
            restored[x] = intensity_of(from[x]) - (restored[x] * intensity.scale + intensity.mean);
            total += restored[x] * restored[x];
        }
        for (int n = 0; n < count; n++) {
            float *to = errors + ((long)n * window.side + 2 * row + y) * window.side;
            for (int x = 0; x < window.side; x++) to[x] = restored[x][n];
        }
    }
    for (int n = 0; n < count; n++) squares[n] += total[n];
}

/* Turn the reconstruction in the window into the absolute error times the pixel's weight, which is a product of one
 * along the rows and one along the columns, and add it to what every patch covers of an image. */
static void blend(const struct workplace *at, int row, int count, struct intensity intensity, const float *ramp,
                  float *const *sums, long stride) {
    const struct image window = at->window;
    for (int y = 0; y < window.rows; y++) {
        vec *restored = window.first + (long)(y + 1) * (window.side + 2) + 1;
        const packed_pixels *from = at->pixels + (long)(2 * row + y) * window.side;
        for (int x = 0; x < window.side; x++) {
            const vec error = intensity_of(from[x]) - (restored[x] * intensity.scale + intensity.mean);
            restored[x] = (vec)((ivec)error & INT32_MAX) * (ramp[2 * row + y] * ramp[x]); /* a NaN stays one */
        }
        for (int n = 0; n < count; n++) {
            float *to = sums[n] + (2 * row + y) * stride;
            for (int x = 0; x < window.side; x++) to[x] += restored[x][n];
        }
    }
}

/* The last layer forward and back, strip by strip; return the sum of squared errors. */
static double reconstruct(const struct shape *shape, const struct workplace *at, const struct layer *layer, int count,
                          float weight, struct intensity intensity) {
    const struct image window = at->window;
    const int rows = strip_rows(shape);
    const long line = window.side + 2;
    vec present = {0};
    for (int n = 0; n < count; n++) present[n] = 1.0f;
    double squares = 0;
    memset(window.first, 0, line * sizeof(vec));
    for (int row = 0; row < shape->side[1]; row += rows) {
        const struct image strip = strip_of(at->decoded[1], row, rows);
        spread_linear(strip, window, layer->spread, layer->bias);
        squares += compare(at, row, present, weight, intensity);
        add_up(window, layer->bias_gradient);
        weigh(strip, window, layer->weight_gradient);
        gather_gradient(window, strip, layer->gather);
        memcpy(window.first, window.first + window.rows * line, line * sizeof(vec)); /* the next strip's row above */
    }
    return squares;
}

/* From the gradient at the last layer's input back to the patches. */
static void go_back(const struct shape *shape, const struct workplace *at, const struct network *network,
                    struct intensity intensity) {
    const struct image *encoded = at->encoded, *decoded = at->decoded;
    const struct layer *encoder = network->encoder, *decoder = network->decoder;
    const int rows = strip_rows(shape);
    for (int level = 2; level <= shape->levels; level++) {
        add_up(decoded[level - 1], decoder[level].bias_gradient);
        weigh(decoded[level], decoded[level - 1], decoder[level].weight_gradient);
        gather_gradient(decoded[level - 1], decoded[level], decoder[level].gather);
    }
    for (int level = shape->levels; level > 1; level--) {
        add_up(encoded[level], encoder[level].bias_gradient);
        weigh(encoded[level], encoded[level - 1], encoder[level].weight_gradient);
        spread_gradient(encoded[level], encoded[level - 1], encoder[level].spread);
    }
    add_up(encoded[1], encoder[1].bias_gradient);
    for (int row = 0; row < shape->side[1]; row += rows) {
        show(at, row, intensity);
        weigh(strip_of(encoded[1], row, rows), at->window, encoder[1].weight_gradient);
    }
}

/* Floats in all parameters together, which is also the length of a gradient. */
static long parameters_of(const struct shape *shape) {
    long total = 0;
    for (int level = 1; level <= shape->levels; level++)
        total += 2 * weights_of(shape, level) + shape->maps[level] + shape->maps[level - 1];
    return total;
}

/* Collect every layer from where `unary_pack` and the caller put its parts; the gradient lies as `parameters` do. */
static struct network connect(const struct shape *shape, const float *const *parameters, const float *packed,
                              float *gradient) {
    struct network network;
    for (int level = 1; level <= shape->levels; level++) {
        const long size = weights_of(shape, level);
        const float *biases[2] = {parameters[encoder_at(level) + BIAS], parameters[decoder_at(shape, level) + BIAS]};
        network.encoder[level] = (struct layer){packed, packed + size, biases[0], gradient, gradient + size};
        network.decoder[level] = (struct layer){packed + 2 * size, packed + 3 * size, biases[1], 0, 0};
        packed += 4 * size;
        gradient += size + shape->maps[level];
    }
    for (int level = shape->levels; level > 0; level--) {
        network.decoder[level].weight_gradient = gradient;
        network.decoder[level].bias_gradient = gradient + weights_of(shape, level);
        gradient += weights_of(shape, level) + shape->maps[level - 1];
    }
    return network;
}

/* One thread's part of a batch. Threads take groups of LANES patches from the counter `next` until none is left. Every
 * group has its own gradient and sum of squares, which the caller adds up in order, so that the result does not depend
 * on which thread took what, nor on their number. The gradient is that of `weight` times the sum of squares. */
void unary_learn(int levels, int side, const int *maps, const float *const *parameters, const float *packed,
                 const uint16_t *const *patches, const int64_t *strides, int count, float mean, float scale,
                 float weight, int *next, void *memory, float *gradients, double *squares) {
    const struct shape shape = shape_of(levels, side, maps);
    const struct workplace at = lay_out(&shape, memory);
    const struct intensity intensity = {mean, scale};
    const long total = parameters_of(&shape);
    const int groups = (count + LANES - 1) / LANES;
    for (int group; (group = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < groups;) {
        const int first = group * LANES, taken = count - first < LANES ? count - first : LANES;
        const struct network network = connect(&shape, parameters, packed, gradients + group * total);
        memset(gradients + group * total, 0, total * sizeof(float));
        interleave(patches + first, strides + first, taken, side, at.pixels);
        encode_and_decode(&shape, &at, &network, intensity);
        squares[group] = reconstruct(&shape, &at, &network.decoder[1], taken, weight, intensity);
        go_back(&shape, &at, &network, intensity);
    }
}

/* Signed errors of `count` patches that lie one after the other, in float32, and every patch's sum of squared errors. A
 * patch's result does not depend on the others. */
void unary_examine(int levels, int side, const int *maps, const float *const *parameters, const float *packed,
                   const uint16_t *patches, int count, float mean, float scale, void *memory, float *errors,
                   double *squares) {
    const struct shape shape = shape_of(levels, side, maps);
    const struct workplace at = lay_out(&shape, memory);
    const struct intensity intensity = {mean, scale};
    const struct network network = connect(&shape, parameters, packed, memory); /* the gradient is not asked for */
    const long size = (long)side * side;
    const int rows = strip_rows(&shape);
    for (int first = 0; first < count; first += LANES) {
        const int taken = count - first < LANES ? count - first : LANES;
        const uint16_t *each[LANES];
        int64_t strides[LANES];
        for (int n = 0; n < taken; n++) each[n] = patches + (first + n) * size, strides[n] = side;
        interleave(each, strides, taken, side, at.pixels);
        encode_and_decode(&shape, &at, &network, intensity);
        for (int row = 0; row < shape.side[1]; row += rows) {
            spread_linear(strip_of(at.decoded[1], row, rows), at.window, network.decoder[1].spread,
                          network.decoder[1].bias);
            hand_out(&at, row, taken, intensity, errors + first * size, squares + first);
        }
    }
}

/* Add the weighted absolute errors of patches to `sums`, which lies like the image that they are patches of but may have
 * another number of floats from row to row; `origins` are pairs of row and column. The order of the patches is that in
 * which they are added. */
void unary_blend(int levels, int side, const int *maps, const float *const *parameters, const float *packed,
                 const uint16_t *image, int64_t stride, const int32_t *origins, int count, float mean, float scale,
                 const float *ramp, void *memory, float *sums, int64_t sums_stride) {
    const struct shape shape = shape_of(levels, side, maps);
    const struct workplace at = lay_out(&shape, memory);
    const struct intensity intensity = {mean, scale};
    const struct network network = connect(&shape, parameters, packed, memory); /* the gradient is not asked for */
    const int rows = strip_rows(&shape);
    for (int first = 0; first < count; first += LANES) {
        const int taken = count - first < LANES ? count - first : LANES;
        const uint16_t *each[LANES];
        float *to[LANES];
        int64_t strides[LANES];
        for (int n = 0; n < taken; n++) {
            const int64_t row = origins[2 * (first + n)], col = origins[2 * (first + n) + 1];
            each[n] = image + row * stride + col, to[n] = sums + row * sums_stride + col;
            strides[n] = stride;
        }
        interleave(each, strides, taken, side, at.pixels);
        encode_and_decode(&shape, &at, &network, intensity);
        for (int row = 0; row < shape.side[1]; row += rows) {
            spread_linear(strip_of(at.decoded[1], row, rows), at.window, network.decoder[1].spread,
                          network.decoder[1].bias);
            blend(&at, row, taken, intensity, ramp, to, sums_stride);
        }
    }
}
