/* The arithmetic of the glyph stem, for one instruction set (each_instruction_set.h includes this file). */

#define V ISA(V)

/* The activation of a pixel. Comparisons that leave a NaN where there is one. */
static V ISA(lit)(const float *constant, const float *table, uint16_t pattern, int channels, int group)
{
    const V zero = {0};
    const V value = *(const V *)constant + *(const V *)(table + (size_t)pattern * channels + group);
    return (V)((ISA(Bits))value & ~(value < zero));
}

/* Two rows of pixels of one image and the pooled row that they make; arguments as in stem.c. */
static void ISA(stem_rows)(
    const uint16_t *patterns, int channels, const float *table, const float *constant, float *activation, float *pooled)
{
    const V zero = {0};
    for (int column = 0; column < SIDE; column += 2)
        for (int group = 0; group < channels; group += LANES) {
            V largest = zero;
            for (int pixel = 0; pixel < 4; pixel++) {
                const int place = pixel / 2 * SIDE + column + pixel % 2;
                const size_t at = (size_t)place * channels + group;
                const V value = ISA(lit)(constant + at, table, patterns[place], channels, group);
                const ISA(Bits) larger = ~(value <= largest);
                largest = (V)((larger & (ISA(Bits))value) | (~larger & (ISA(Bits))largest));
                *(V *)(activation + at) = value;
            }
            *(V *)(pooled + (size_t)column / 2 * channels + group) = largest;
        }
}

static void ISA(stem_rows_backward)(
    const uint16_t *patterns, int channels, const float *table, const float *constant, const float *dactivation,
    const float *dpooled, float *dtable, float *dconstant)
{
    const V zero = {0};
    for (int column = 0; column < SIDE; column += 2)
        for (int group = 0; group < channels; group += LANES) {
            V values[4], largest = zero;
            size_t at[4];
            for (int pixel = 0; pixel < 4; pixel++) {
                const int place = pixel / 2 * SIDE + column + pixel % 2;
                at[pixel] = (size_t)place * channels + group;
                values[pixel] = ISA(lit)(constant + at[pixel], table, patterns[place], channels, group);
                const ISA(Bits) larger = values[pixel] > largest;
                largest = (V)((larger & (ISA(Bits))values[pixel]) | (~larger & (ISA(Bits))largest));
            }
            /* The pooled gradient goes to the first of the largest; where that is 0, the ReLU is closed anyway. */
            const V share = *(const V *)(dpooled + (size_t)column / 2 * channels + group);
            ISA(Bits) open = largest > zero;
            for (int pixel = 0; pixel < 4; pixel++) {
                const ISA(Bits) wins = open & (values[pixel] == largest);
                open &= ~wins;
                V gradient = *(const V *)(dactivation + at[pixel]) + (V)(wins & (ISA(Bits))share);
                gradient = (V)((ISA(Bits))gradient & ~(values[pixel] <= zero));
                *(V *)(dconstant + at[pixel]) += gradient;
                *(V *)(dtable + (size_t)patterns[pixel / 2 * SIDE + column + pixel % 2] * channels + group) += gradient;
            }
        }
}

#undef V
