/* Includes KERNELS, a file of functions named ISA(name), once for each instruction set that this compiler can aim at.
 *
 * LANES is the number of floats in a vector, V such a vector (at any address), and TILE_ROWS the height of a tile of a
 * matrix product that fits the registers. FOR_LANES(lanes, name) is the function for a length of vectors that
 * glyphcrm_has_lanes approves of. */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_X86_VARIANTS
#define FOR_LANES(lanes, name) ((lanes) == 16 ? name##_avx512 : (lanes) == 8 ? name##_avx2 : name##_base)
#else
#define FOR_LANES(lanes, name) name##_base
#endif

/* Every processor: four lanes, which are SSE2 on x86-64 and NEON on 64-bit ARM. */
#define ISA(name) name##_base
#define LANES 4
#define TILE_ROWS 2
typedef float V_base __attribute__((vector_size(16), aligned(4)));
typedef int Bits_base __attribute__((vector_size(16), aligned(4)));
#include KERNELS
#undef ISA
#undef LANES
#undef TILE_ROWS

#ifdef HAS_X86_VARIANTS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define ISA(name) name##_avx2
#define LANES 8
#define TILE_ROWS 2
typedef float V_avx2 __attribute__((vector_size(32), aligned(4)));
typedef int Bits_avx2 __attribute__((vector_size(32), aligned(4)));
#include KERNELS
#undef ISA
#undef LANES
#undef TILE_ROWS
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,prefer-vector-width=512")
#define ISA(name) name##_avx512
#define LANES 16
#define TILE_ROWS 6
typedef float V_avx512 __attribute__((vector_size(64), aligned(4)));
typedef int Bits_avx512 __attribute__((vector_size(64), aligned(4)));
#include KERNELS
#undef ISA
#undef LANES
#undef TILE_ROWS
#pragma GCC pop_options
#endif
