/* A row of attention's probabilities, for one instruction set (each_instruction_set.h includes this file). */

#include "row_kernels.h"

#define V ISA(V)

static void ISA(drop_row)(
    uint64_t seed, uint64_t counter, int drop_below, int width, const float *restrict probabilities,
    float *restrict dropped)
{
    const float scale = (float)DROPS / (DROPS - drop_below);
    uint32_t words[BLOCK / 2];
    for (int i = 0; i < width; i += BLOCK, counter += BLOCK / 8) {
        const int here = width - i < BLOCK ? width - i : BLOCK;
        ISA(philox)(seed, counter, (here + 7) / 8, words);
        ISA(drop)(probabilities + i, (const Bits16 *)words, drop_below, scale, here, dropped + i);
    }
}

/* With D = P m, m being dropout's mask and scale, and g the gradient of D: dscores = D g - P sum(D g). */
static void ISA(softmax_row_backward)(
    float scaling, int width, const float *restrict probabilities, const float *restrict dropped,
    float *restrict gradient)
{
    V sums = {0};
    int i = 0;
    for (; i + LANES <= width; i += LANES)
        sums += *(const V *)(dropped + i) * *(const V *)(gradient + i);
    float sum = ISA(total)(sums);
    for (; i < width; i++)
        sum += dropped[i] * gradient[i];
    for (i = 0; i < width; i++)
        gradient[i] = (dropped[i] * gradient[i] - probabilities[i] * sum) * scaling;
}

#undef V
