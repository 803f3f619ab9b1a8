// mandel.c: the Mandelbrot set. The kernel keeps each process's floating-point registers apart.
#include "user.h"

int main(void)
{
    for (int row = -11; row <= 11; row++) {
        for (int column = -46; column <= 23; column++) {
            double x = column / 22.0, y = row / 9.5, a = 0, b = 0;
            int n = 0;

            for (; n < 60 && a * a + b * b < 4; n++) {
                double next = a * a - b * b + x;
                b = 2 * a * b + y;
                a = next;
            }
            printf("%c", " .,:;-=+*%#@"[n == 60 ? 11 : n < 20 ? n / 2 : 10]);
        }
        printf("\n");
    }
    return 0;
}
