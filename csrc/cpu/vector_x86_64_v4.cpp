#define SOAE_LEVEL x86_64_v4
#define SOAE_VECTOR_BYTES 64
#include "cpu/vector_loops.h"
