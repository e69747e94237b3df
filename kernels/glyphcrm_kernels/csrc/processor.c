/* What the processor that this runs on can do. */

/* Whether it has the instructions for vectors of `lanes` floats: 16 (AVX-512), 8 (AVX2) or 4 (any). */
int glyphcrm_has_lanes(int lanes)
{
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    if (lanes == 16)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    if (lanes == 8)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return lanes == 4;
}
