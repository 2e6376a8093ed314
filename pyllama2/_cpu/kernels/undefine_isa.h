/* Forgets what the second table of a header defines anew. */
#undef NAME
#undef TARGET
#undef TARGET_INLINE
#undef DOT_U8
#undef SUM_U8
#undef OFFSET_INPUTS
#undef APART
#undef DOT_U8_AT
#undef DOT_S16_AT
#undef DOT_S16
#undef Q4Sums
#undef ZERO_Q4
#undef UNPACK_Q4
#undef DOT_Q4
#undef KEEP_Q4
#undef TOTAL_Q4
