/* The arithmetic of the add-norm, for one instruction set (each_instruction_set.h includes this file). */

#define V ISA(V)

static float ISA(total)(V sums)
{
    float total = 0;
    for (int lane = 0; lane < LANES; lane++)
        total += sums[lane];
    return total;
}

/* The random words of `count` counters from `first` on, four each, in the order in which their halves are used. */
static void ISA(philox)(uint64_t seed, uint64_t first, int count, uint32_t *restrict words)
{
    for (int i = 0; i < count; i++) { /* a vector of counters at a time, the rounds unrolled */
        uint32_t a = (uint32_t)(first + i), b = (uint32_t)((first + i) >> 32), c = 0, d = 0;
        for (int round = 0; round < ROUNDS; round++) {
            const uint32_t key = (uint32_t)seed + round * 0x9E3779B9u;
            const uint32_t other_key = (uint32_t)(seed >> 32) + round * 0xBB67AE85u;
            const uint64_t of_a = (uint64_t)0xD2511F53u * a, of_c = (uint64_t)0xCD9E8D57u * c;
            a = (uint32_t)(of_c >> 32) ^ b ^ key;
            c = (uint32_t)(of_a >> 32) ^ d ^ other_key;
            b = (uint32_t)of_c, d = (uint32_t)of_a;
        }
        words[4 * i] = a, words[4 * i + 1] = c, words[4 * i + 2] = b, words[4 * i + 3] = d;
    }
}

/* x * scale where the element is kept, else 0. */
static void ISA(drop)(
    const float *restrict x, const uint16_t *restrict bits, int drop_below, float scale, int d, float *restrict kept)
{
    for (int i = 0; i < d; i++)
        kept[i] = bits[i] >= drop_below ? x[i] * scale : 0.0f;
}

/* z = dropout(x) + residual [+ skip]; without `bits` nothing is dropped. */
static void ISA(sum_row)(
    const float *x, const float *residual, const float *skip, const uint16_t *bits, int drop_below, float scale, int d,
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
