/* What a function returns that could not do its work; cpu_library.py reads it. */

#define NO_MEMORY -1
#define BAD_INDEX 1 /* one was out of range, and nothing was read there */
