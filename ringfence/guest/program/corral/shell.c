// shell.c: the command line, a thread of the kernel. Commands come from the console, or after `--`
// on the kernel's own command line; then the machine ends with the status of the last one.
#include "corral.h"

enum { MAX_WORDS = 8 };

struct command {
    const char *name, *arguments, *about;
    int (*run)(int argc, char **argv);  // the status
};

static int background;  // the command line ended in &

// Tells of background processes that have ended.
static void report_ended(void)
{
    char name[16];
    int status;

    for (int pid; (pid = process_reap(&status, name)) > 0;)
        printf("[%d] %s ended with status %d\n", pid, name, status);
}

static int run(int argc, char **argv)
{
    const struct program *program = argc ? program_find(argv[0]) : NULL;
    int pid, status = 0;

    if (!program) {
        printf("run what? one of:\n");
        for (u32 i = 0; i < programs_count; i++)
            printf("  %-10s %s\n", programs[i].name, programs[i].about);
        return 2;
    }
    pid = process_run(program, argc, argv);
    if (!pid) {
        printf("run: no memory, or too many processes\n");
        return 1;
    }
    if (background) {
        printf("[%d] %s\n", pid, argv[0]);
        return 0;
    }
    console_foreground = pid;
    process_wait(pid, &status);
    console_foreground = 0;
    return status;
}

static int cmd_run(int argc, char **argv)
{
    return run(argc - 1, argv + 1);
}

static int cmd_ps(int, char **)
{
    static const char *const states[] = {"free", "ready", "running", "asleep", "ended"};

    printf("  PID PARENT STATE       MS SWITCHES  KIB NAME\n");
    for (u32 i = 0; i < MAX_PROCESSES; i++) {
        const struct process *p = &processes[i];

        if (p->state != FREE)
            printf("%5d %6d %-7s %6lu %8lu %4lu %s\n", p->pid, p->parent, states[p->state],
                   p->ran * 1000 / machine.timebase, p->switches, p->space.frames * PAGE / 1024, p->name);
    }
    return 0;
}

// Every way to fault, or the one that is named. Good if the kernel ended each process for it.
static int cmd_fault(int argc, char **argv)
{
    static char *const kinds[] = {"null", "text", "kernel", "nowhere", "illegal", "breakpoint", "data", "stack"};
    int bad = 0;

    background = 0;
    for (u32 i = 0; i < COUNT(kinds); i++) {
        if (argc > 1 && strcmp(argv[1], kinds[i]) != 0)
            continue;
        int status = run(2, (char *[]){"fault", kinds[i]});
        if (argc > 1)
            return status;
        bad += status < 128;
    }
    if (argc > 1)
        return run(2, (char *[]){"fault", argv[1]});
    printf("%lu processes faulted, and Corral is well.\n", COUNT(kinds));
    return bad;
}

static int cmd_kill(int argc, char **argv)
{
    u64 pid;

    if (argc > 1 && parse_number(argv[1], &pid) && process_kill((int)pid))
        return 0;
    printf("kill: no such process\n");
    return 1;
}

static int cmd_wait(int, char **)
{
    int status = 0, last;

    console_foreground = EVERYBODY;
    while (process_wait(0, &last) > 0)
        status = last;
    console_foreground = 0;
    return status;
}

static int cmd_echo(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        printf("%s%s", argv[i], i + 1 < argc ? " " : "");
    printf("\n");
    return 0;
}

static int cmd_mem(int, char **)
{
    printf("RAM    %p %6lu KiB\n", (void *)machine.ram, machine.ram_size / 1024);
    printf("text   %p %6lu KiB\n", (void *)kernel_start, (u64)(rodata_start - kernel_start) / 1024);
    printf("rodata %p %6lu KiB\n", (void *)rodata_start, (u64)(data_start - rodata_start) / 1024);
    printf("data   %p %6lu KiB\n", (void *)data_start, (u64)(kernel_end - data_start) / 1024);
    printf("frames %18lu, %lu of them free\n", frames_total, frames_free);
    if (machine.isa & ISA_TLB)
        printf("TLB    %18lu misses\n", tlb.count);
    return 0;
}

// The goldfish clock counts nanoseconds since 1970; reading the low word holds the high one.
static void print_date(u64 seconds)
{
    u64 days = seconds / 86400, year = 1970, month = 1;

    for (;; year++) {
        u64 length = year % 4 == 0 && (year % 100 || year % 400 == 0) ? 366 : 365;
        if (days < length)
            break;
        days -= length;
    }
    for (;; month++) {
        u64 leap = year % 4 == 0 && (year % 100 || year % 400 == 0);
        u64 length = month == 2 ? 28 + leap : month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
        if (days < length)
            break;
        days -= length;
    }
    printf("%lu-%02lu-%02lu %02lu:%02lu:%02lu UTC", year, month, days + 1, seconds / 3600 % 24, seconds / 60 % 60,
           seconds % 60);
}

static int cmd_uptime(int, char **)
{
    u64 ms = timer_now() * 1000 / machine.timebase;

    printf("up %lu.%03lu s", ms / 1000, ms % 1000);
    if (machine.rtc) {
        u64 low = read32(machine.rtc), high = read32(machine.rtc + 4);

        printf("; it is ");
        print_date((high << 32 | low) / 1000000000);
    }
    printf("\n");
    return 0;
}

static int cmd_harts(int, char **)
{
    static const char *const states[] = {"started",        "stopped",   "starting", "stopping",
                                         "suspended",      "suspending", "resuming"};

    for (u32 i = 0; i < machine.harts; i++) {
        struct sbi_result r = sbi_call(SBI_HSM, 2, machine.hart[i], 0, 0);

        printf("hart %lu: %s%s\n", machine.hart[i],
               r.error || r.value >= COUNT(states) ? "unknown" : states[r.value],
               machine.hart[i] == machine.boot_hart ? ", runs Corral" : "");
    }
    return 0;
}

static int cmd_selftest(int, char **)
{
    return selftest();
}

static int cmd_panic(int, char **)
{
    panic("as you wish");
}

static int cmd_poweroff(int argc, char **argv)
{
    u64 status = 0;

    if (argc > 1 && (!parse_number(argv[1], &status) || status > 255)) {
        printf("poweroff: a status is a number from 0 to 255\n");
        return 2;
    }
    power_off((u8)status);
}

static int cmd_help(int, char **);

static const struct command commands[] = {
    {"help", "", "this list", cmd_help},
    {"run", "NAME [WORD...] [&]", "run a program; with & in the background", cmd_run},
    {"ps", "", "list processes", cmd_ps},
    {"kill", "PID", "end a process", cmd_kill},
    {"wait", "", "wait for all background processes", cmd_wait},
    {"fault", "[KIND]", "run programs that fault; each is killed, no more", cmd_fault},
    {"mem", "", "show how memory is used", cmd_mem},
    {"harts", "", "show the harts", cmd_harts},
    {"uptime", "", "show the time since start, and the date", cmd_uptime},
    {"echo", "[WORD...]", "print the words", cmd_echo},
    {"selftest", "", "try every kind of trap, page table and device", cmd_selftest},
    {"panic", "", "stop with status 132, as on a fault of the kernel", cmd_panic},
    {"poweroff", "[STATUS]", "end the machine", cmd_poweroff},
};

static int cmd_help(int, char **)
{
    for (u32 i = 0; i < COUNT(commands); i++)
        printf("  %-8s %-18s %s\n", commands[i].name, commands[i].arguments, commands[i].about);
    printf("Commands can be separated by ; . Ctrl-C ends the program in front, Ctrl-D the machine.\n");
    return 0;
}

static int execute(char *text)
{
    char *words[MAX_WORDS];
    int n = 0;

    for (char *c = text; *c;) {
        while (*c == ' ')
            *c++ = 0;
        if (!*c)
            break;
        if (n == MAX_WORDS) {
            printf("too many words\n");
            return 2;
        }
        words[n++] = c;
        while (*c && *c != ' ')
            c++;
    }
    background = n > 1 && strcmp(words[n - 1], "&") == 0;
    n -= background;
    if (n == 0)
        return 0;
    for (u32 i = 0; i < COUNT(commands); i++)
        if (strcmp(words[0], commands[i].name) == 0)
            return commands[i].run(n, words);
    printf("%s: no such command; try help\n", words[0]);
    return 127;
}

// Commands separated by semicolons; the status of the last. An & ends a command as well.
static int execute_line(char *line)
{
    char command[160];
    int status = 0;

    for (u32 n = 0;; line++) {
        if (*line && *line != ';') {
            if (*line == '&' && n < sizeof command - 3)
                command[n++] = ' ';
            if (n < sizeof command - 2)
                command[n++] = *line;
        }
        if (!*line || *line == ';' || *line == '&') {
            command[n] = 0;
            for (u32 i = 0; i < n; i++)
                if (command[i] != ' ') {
                    status = execute(command);
                    break;
                }
            n = 0;
        }
        if (!*line)
            return status;
    }
}

// What follows the word `--`, or NULL.
static char *boot_commands(void)
{
    char *c = machine.bootargs;

    for (; *c; c++)
        if (c[0] == '-' && c[1] == '-' && (c == machine.bootargs || c[-1] == ' ') && (c[2] == ' ' || !c[2]))
            return c + 2;
    return NULL;
}

void shell(void)
{
    char line[160], *given = boot_commands();

    if (given)
        power_off((u8)execute_line(given));
    printf("Type help for a list of commands.\n");
    for (;;) {
        report_ended();
        printf("corral> ");
        i64 n = console_read(line, sizeof line - 1);
        if (n == 0) {
            printf("\n");
            power_off(0);
        }
        line[n - 1] = 0;
        execute_line(line);
    }
}
