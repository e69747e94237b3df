/* What attention's dropout needs between matrix products, on a CPU, float32: see attention/cpu.py, the only caller. */

#include <stddef.h>
#include <stdint.h>

#define BLOCK 512 /* elements whose random bits are drawn at once, onto the stack; a multiple of eight */

#define KERNELS "attention_kernels.h"
#include "each_instruction_set.h"

/* dropped = dropout(probabilities), both ``(rows, width)``; seed ``(1,)``. Row r takes its random bits from counter
 * first + r * ceil(width / 8) on. Returns 0. */
int glyphcrm_attention_dropout(
    int lanes, int threads, int rows, int width, int drop_below, int first, const uint64_t *seed,
    const float *probabilities, float *dropped)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int row = 0; row < rows; row++) {
        const size_t at = (size_t)row * width;
        const uint64_t counter = first + (uint64_t)row * ((width + 7) / 8);
        FOR_LANES(lanes, drop_row)(*seed, counter, drop_below, width, probabilities + at, dropped + at);
    }
    return 0;
}

/* From the gradient of `dropped` that of the scores, whose softmax the probabilities are, in its place and times
 * `scaling`; `dropped` is made again. Returns 0. */
int glyphcrm_attention_dropout_backward(
    int lanes, int threads, int rows, int width, int drop_below, int first, float scaling, const uint64_t *seed,
    const float *probabilities, float *gradient, float *dropped)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int row = 0; row < rows; row++) {
        const size_t at = (size_t)row * width;
        const uint64_t counter = first + (uint64_t)row * ((width + 7) / 8);
        FOR_LANES(lanes, drop_row)(*seed, counter, drop_below, width, probabilities + at, dropped + at);
        FOR_LANES(lanes, softmax_row_backward)(scaling, width, probabilities + at, dropped + at, gradient + at);
    }
    return 0;
}
