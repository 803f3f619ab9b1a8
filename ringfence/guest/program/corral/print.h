// print.h: formatted text, for whoever has a way to put out a character.
#pragma once

#include "types.h"

void format(void (*put)(char), const char *text, va_list args);
