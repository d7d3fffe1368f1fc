#include "quire/wire.h"
