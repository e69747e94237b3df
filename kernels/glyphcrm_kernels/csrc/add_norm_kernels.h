/* The arithmetic of the add-norm, for one instruction set (each_instruction_set.h includes this file). */

#include "row_kernels.h"

#define V ISA(V)

/* z = dropout(x) + residual [+ skip]; without `bits` nothing is dropped. */
static void ISA(sum_row)(
    const float *x, const float *residual, const float *skip, const Bits16 *bits, int drop_below, float scale, int d,
    float *z)
{
    if (bits) {
        ISA(drop)(x, bits, drop_below, scale, d, z);
        x = z;
    }
    for (int i = 0; i < d; i += LANES) {
        const V sum = *(const V *)(x + i) + *(const V *)(residual + i);
        *(V *)(z + i) = skip ? sum + *(const V *)(skip + i) : sum;
    }
}

static void ISA(normalize_row)(
    const float *z, const float *weight, const float *bias, float eps, int d, float *y, float *mean, float *rstd)
{
    V sums = {0}, squares = {0};
    for (int i = 0; i < d; i += LANES)
        sums += *(const V *)(z + i);
    *mean = ISA(total)(sums) / d;
    for (int i = 0; i < d; i += LANES) {
        const V centred = *(const V *)(z + i) - *mean;
        squares += centred * centred;
    }
    *rstd = 1 / sqrtf(ISA(total)(squares) / d + eps);
    for (int i = 0; i < d; i += LANES)
        *(V *)(y + i) = (*(const V *)(z + i) - *mean) * *rstd * *(const V *)(weight + i) + *(const V *)(bias + i);
}

/* `z` is the row's sum; dz may be the same memory. What the row adds to dweight and dbias is added. */
static void ISA(normalize_row_backward)(
    const float *dy, const float *z, const float *weight, float mean, float rstd, int d, float *dz, float *dweight,
    float *dbias)
{
    V sums = {0}, products = {0};
    for (int i = 0; i < d; i += LANES) {
        const V normal = (*(const V *)(z + i) - mean) * rstd, gradient = *(const V *)(dy + i);
        const V weighted = gradient * *(const V *)(weight + i);
        sums += weighted;
        products += weighted * normal;
        *(V *)(dweight + i) += gradient * normal;
        *(V *)(dbias + i) += gradient;
    }
    const float average = ISA(total)(sums) / d, slope = ISA(total)(products) / d;
    for (int i = 0; i < d; i += LANES) {
        const V normal = (*(const V *)(z + i) - mean) * rstd;
        *(V *)(dz + i) = (*(const V *)(dy + i) * *(const V *)(weight + i) - average - normal * slope) * rstd;
    }
}

#undef V
