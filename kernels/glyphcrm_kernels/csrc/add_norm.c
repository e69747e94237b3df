/* Add-norm on a CPU, float32: see addnorm/cpu.py, the only caller.
 *
 * Each token's row stays in the first-level cache between the sum, the normalisation and, backward, their gradients. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "results.h"

#define KERNELS "add_norm_kernels.h"
#include "each_instruction_set.h"

/* Tokens that share a buffer and a partial sum; fixed, so that no sum depends on the number of threads. */
#define CHUNK 64

/* The buffers of a chunk: a row, and 16 bits for each of its elements. */
struct row {
    int groups; /* of eight elements */
    float *z;
    uint32_t *words;
};

static int new_row(struct row *row, int d)
{
    row->groups = (d + 7) / 8;
    row->z = malloc(d * sizeof(float));
    row->words = malloc((size_t)row->groups * 4 * sizeof(uint32_t));
    return row->z && row->words ? 0 : -1;
}

static void free_row(struct row *row) { free(row->z), free(row->words); }

static const Bits16 *draw(struct row *row, int lanes, const uint64_t *seed, int64_t token)
{
    if (seed)
        FOR_LANES(lanes, philox)(*seed, (uint64_t)token * row->groups, row->groups, row->words);
    return seed ? (const Bits16 *)row->words : NULL;
}

/* Whether a token has a row of skip that is not there. */
static int is_outside(const int64_t *index, int token, int rows)
{
    return index && (index[token] < 0 || index[token] >= rows);
}

static const float *skip_of(const float *skip, const int64_t *index, int token, int d)
{
    return skip ? skip + index[token] * d : NULL;
}

/* x, residual and y ``(tokens, d)``, weight and bias ``(d,)``, mean and rstd ``(tokens,)``; skip ``(rows, d)`` and index
 * ``(tokens,)``, or both NULL; seed ``(1,)``, or NULL without dropout. Returns 0, BAD_INDEX where a token's index is not
 * in [0, rows), or NO_MEMORY. */
int glyphcrm_add_norm_forward(
    int lanes, int threads, int tokens, int d, int rows, int drop_below, const float *x, const float *skip,
    const int64_t *index, const float *residual, const float *weight, const float *bias, const uint64_t *seed,
    float eps, float *y, float *mean, float *rstd)
{
    const float scale = (float)DROPS / (DROPS - drop_below);
    const int chunks = (tokens + CHUNK - 1) / CHUNK;
    int failed = 0, outside = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed, outside)
    for (int i = 0; i < chunks; i++) {
        struct row row;
        const int bad = new_row(&row, d) != 0;
        failed |= bad;
        for (int token = i * CHUNK; !bad && token < tokens && token < (i + 1) * CHUNK; token++) {
            const size_t at = (size_t)token * d;
            if (is_outside(index, token, rows)) {
                outside = 1;
                continue;
            }
            FOR_LANES(lanes, sum_row)(x + at, residual + at, skip_of(skip, index, token, d),
                                      draw(&row, lanes, seed, token), drop_below, scale, d, row.z);
            FOR_LANES(lanes, normalize_row)(row.z, weight, bias, eps, d, y + at, mean + token, rstd + token);
        }
        free_row(&row);
    }
    return failed ? NO_MEMORY : outside ? BAD_INDEX : 0;
}

/* The gradients, from that of y: dz ``(tokens, d)``, which is at once that of residual and of the gathered rows of skip,
 * dx ``(tokens, d)`` with dropout, else NULL; dparameters ``(2, d)``, those of weight and bias. Returns as above. */
int glyphcrm_add_norm_backward(
    int lanes, int threads, int tokens, int d, int rows, int drop_below, const float *x, const float *skip,
    const int64_t *index, const float *residual, const float *weight, const float *mean, const float *rstd,
    const float *dy, const uint64_t *seed, float *dz, float *dx, float *dparameters)
{
    const float scale = (float)DROPS / (DROPS - drop_below);
    const int chunks = (tokens + CHUNK - 1) / CHUNK;
    /* What each chunk adds, ``(chunks, 2, d)``; added up in pairs, whatever the threads were. */
    float *partial = malloc(((size_t)chunks * 2 * d + 1) * sizeof(float));
    int failed = partial == NULL, outside = 0;
    if (failed)
        return NO_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed, outside)
    for (int i = 0; i < chunks; i++) {
        struct row row;
        const int bad = new_row(&row, d) != 0;
        float *dweight = partial + (size_t)i * 2 * d, *dbias = dweight + d;
        failed |= bad;
        memset(dweight, 0, (size_t)2 * d * sizeof(float));
        for (int token = i * CHUNK; !bad && token < tokens && token < (i + 1) * CHUNK; token++) {
            const size_t at = (size_t)token * d;
            if (is_outside(index, token, rows)) {
                outside = 1;
                continue;
            }
            const Bits16 *bits = draw(&row, lanes, seed, token);
            FOR_LANES(lanes, sum_row)(x + at, residual + at, skip_of(skip, index, token, d), bits, drop_below, scale, d,
                                      row.z);
            FOR_LANES(lanes, normalize_row_backward)(dy + at, row.z, weight, mean[token], rstd[token], d, dz + at,
                                                     dweight, dbias);
            if (dx)
                FOR_LANES(lanes, drop)(dz + at, bits, drop_below, scale, d, dx + at);
        }
        free_row(&row);
    }
    for (int step = 1; step < chunks; step *= 2)
        for (int i = 0; i + step < chunks; i += 2 * step)
            for (int j = 0; j < 2 * d; j++)
                partial[(size_t)i * 2 * d + j] += partial[(size_t)(i + step) * 2 * d + j];
    if (chunks)
        memcpy(dparameters, partial, (size_t)2 * d * sizeof(float));
    else
        memset(dparameters, 0, (size_t)2 * d * sizeof(float));
    free(partial);
    return failed ? NO_MEMORY : outside ? BAD_INDEX : 0;
}
