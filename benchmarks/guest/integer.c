// Integer work of several kinds: sieve, sorting, hashing, a matrix product, string search. Ends with status 0 where the sum is right.
typedef unsigned long u64;
typedef unsigned int u32;

static unsigned char sieve[1 << 16];
static u32 numbers[1 << 14];
static u32 a[64][64], b[64][64], c[64][64];
static char text[1 << 14];

static u32 random_state = 1;
static u32 next_random(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static u64 primes(void) {
    u64 count = 0;
    for (u32 i = 2; i < sizeof sieve; i++) sieve[i] = 1;
    for (u32 i = 2; i < sizeof sieve; i++) {
        if (!sieve[i]) continue;
        count++;
        for (u32 j = i + i; j < sizeof sieve; j += i) sieve[j] = 0;
    }
    return count;
}

static void sort(u32 *v, int low, int high) {
    while (low < high) {
        u32 pivot = v[(low + high) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (v[i] < pivot) i++;
            while (v[j] > pivot) j--;
            if (i <= j) {
                u32 t = v[i];
                v[i++] = v[j];
                v[j--] = t;
            }
        }
        sort(v, low, j);
        low = i;
    }
}

static u64 hash(const unsigned char *p, int n) {
    u64 h = 14695981039346656037ul;
    for (int i = 0; i < n; i++) h = (h ^ p[i]) * 1099511628211ul;
    return h;
}

static u64 product(void) {
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < 64; j++) {
            u32 sum = 0;
            for (int k = 0; k < 64; k++) sum += a[i][k] * b[k][j];
            c[i][j] = sum;
        }
    return c[13][37];
}

static u64 search(const char *needle, int length) {
    u64 found = 0;
    for (u32 i = 0; i + length <= sizeof text; i++) {
        int j = 0;
        while (j < length && text[i + j] == needle[j]) j++;
        found += j == length;
    }
    return found;
}

int main(void) {
    u64 sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (u32 i = 0; i < sizeof numbers / sizeof *numbers; i++) numbers[i] = next_random();
        for (int i = 0; i < 64; i++)
            for (int j = 0; j < 64; j++) a[i][j] = next_random(), b[i][j] = next_random() % 100;
        for (u32 i = 0; i < sizeof text; i++) text[i] = 'a' + next_random() % 3;
        sum += primes();
        sort(numbers, 0, sizeof numbers / sizeof *numbers - 1);
        for (u32 i = 1; i < sizeof numbers / sizeof *numbers; i++)
            if (numbers[i - 1] > numbers[i]) return 1;
        sum += hash((unsigned char *)numbers, sizeof numbers) & 0xffff;
        sum += product() + search("abcab", 5);
    }
    return sum == 0;
}
