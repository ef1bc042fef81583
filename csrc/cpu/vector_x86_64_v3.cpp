#define SOAE_LEVEL x86_64_v3
#define SOAE_VECTOR_BYTES 32
#include "cpu/vector_loops.h"
