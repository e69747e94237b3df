/* What functions over rows share, for one instruction set: the sum of a vector, and dropout as the Triton kernels have it.
 *
 * Philox4x32-7 gives 128 bits for eight neighbouring elements, 16 each. They are a function of seed and counter, so that
 * a backward computes them again. */

#define ROUNDS 7
#define DROPS 65536 /* drop_below is out of so many */

typedef uint16_t Bits16 __attribute__((may_alias)); /* read from the words that hold two each */

static float ISA(total)(ISA(V) sums)
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
    const float *restrict x, const Bits16 *restrict bits, int drop_below, float scale, int d, float *restrict kept)
{
    for (int i = 0; i < d; i++)
        kept[i] = bits[i] >= drop_below ? x[i] * scale : 0.0f;
}
