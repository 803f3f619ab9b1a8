// Floating-point work: n-body steps, a matrix product, the Mandelbrot set, conversions. Ends with status 0 where the result is a number.
typedef struct { double x, y, z, vx, vy, vz, mass; } Body;

static Body bodies[5];
static double m1[48][48], m2[48][48], m3[48][48];
static float signal[4096];

static double root(double x) {
    double r;
    __asm__("fsqrt.d %0, %1" : "=f"(r) : "f"(x));
    return r;
}

static void advance(double dt) {
    for (int i = 0; i < 5; i++)
        for (int j = i + 1; j < 5; j++) {
            Body *p = &bodies[i], *q = &bodies[j];
            double dx = p->x - q->x, dy = p->y - q->y, dz = p->z - q->z;
            double d2 = dx * dx + dy * dy + dz * dz + 0.01;
            double mag = dt / (d2 * root(d2));
            p->vx -= dx * q->mass * mag, p->vy -= dy * q->mass * mag, p->vz -= dz * q->mass * mag;
            q->vx += dx * p->mass * mag, q->vy += dy * p->mass * mag, q->vz += dz * p->mass * mag;
        }
    for (int i = 0; i < 5; i++)
        bodies[i].x += dt * bodies[i].vx, bodies[i].y += dt * bodies[i].vy, bodies[i].z += dt * bodies[i].vz;
}

static int mandelbrot(int n) {
    int inside = 0;
    for (int py = 0; py < n; py++)
        for (int px = 0; px < n; px++) {
            double cr = 3.0 * px / n - 2.0, ci = 2.0 * py / n - 1.0, r = 0, i = 0;
            int k = 0;
            for (; k < 50 && r * r + i * i < 4.0; k++) {
                double t = r * r - i * i + cr;
                i = 2 * r * i + ci, r = t;
            }
            inside += k == 50;
        }
    return inside;
}

int main(void) {
    double sum = 0;
    for (int i = 0; i < 5; i++)
        bodies[i] = (Body){i * 1.5, i * i * 0.5, 3.0 - i, 0.1 * i, 0.2, -0.1 * i, 1.0 + i};
    for (int round = 0; round < ROUNDS; round++) {
        for (int step = 0; step < 1000; step++) advance(0.001);
        for (int i = 0; i < 48; i++)
            for (int j = 0; j < 48; j++) m1[i][j] = i * 0.5 + j, m2[i][j] = 1.0 / (i + j + 1);
        for (int i = 0; i < 48; i++)
            for (int j = 0; j < 48; j++) {
                double s = 0;
                for (int k = 0; k < 48; k++) s += m1[i][k] * m2[k][j];
                m3[i][j] = s;
            }
        for (int i = 0; i < 4096; i++) signal[i] = (float)(i * 37 % 1000) / 7.0f + (float)((int)sum % 3);
        for (int i = 1; i < 4096; i++) signal[i] = signal[i] * 0.9f + signal[i - 1] * 0.1f;
        sum += bodies[0].x + m3[7][9] + mandelbrot(40) + signal[4095];
    }
    return !(sum == sum);
}
