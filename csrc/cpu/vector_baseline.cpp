#define SOAE_LEVEL baseline
#define SOAE_VECTOR_BYTES 16
#include "cpu/vector_loops.h"
