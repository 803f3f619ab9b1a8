// process.c: processes, and whose turn it is.
//
// Process 0 is the shell, a thread of the kernel on the boot stack. Each process has a kernel
// stack, on which it sleeps in system calls. The hart goes from one to the next directly: there
// is no scheduler thread. A process runs until its quantum ends, it sleeps, or it ends.
#include "corral.h"

struct process processes[MAX_PROCESSES];
struct process *current;

__attribute__((section(".noinit"), aligned(16))) static u8 stacks[MAX_PROCESSES][KERNEL_STACK];
__attribute__((section(".noinit"), aligned(16))) u8 boot_stack[2 * KERNEL_STACK];
__asm__(".globl boot_stack_top\n.set boot_stack_top, boot_stack + 16384");

static struct process *fp_owner;  // whose values are in f0 to f31
static int last_pid;
static u64 turn_began;

void process_init(void)
{
    current = &processes[0];
    current->state = RUNNING;
    strlcpy(current->name, "shell", sizeof current->name);
    turn_began = timer_now();
}

// Floating-point registers have been used for something else.
void process_forget_fp(void)
{
    fp_owner = NULL;
}

// sstatus.FS says whether a process has changed its registers since they were last saved.
static void leave_fp(struct process *p)
{
    if (p->frame && (p->frame->sstatus & SSTATUS_FS) == SSTATUS_FS_DIRTY) {
        csr_set(sstatus, SSTATUS_FS_INITIAL);
        fp_save(p->fp);
        p->frame->sstatus = (p->frame->sstatus & ~SSTATUS_FS) | SSTATUS_FS_CLEAN;
    }
}

static void enter_fp(struct process *p)
{
    if (p->frame && (p->frame->sstatus & SSTATUS_FS) && fp_owner != p) {
        csr_set(sstatus, SSTATUS_FS_INITIAL);
        fp_restore(p->fp);
        fp_owner = p;
    }
}

static struct process *next_ready(void)
{
    u64 now = timer_now();

    for (u32 i = 1; i <= MAX_PROCESSES; i++) {
        struct process *p = &processes[((u32)(current - processes) + i) % MAX_PROCESSES];

        if (p->state == ASLEEP && now >= p->wake)
            p->state = READY;
        if (p->state == READY)
            return p;
    }
    return NULL;
}

// Waits for the next interrupt and takes it. Nobody is ready.
static void idle(void)
{
    u64 first = FOREVER;

    for (u32 i = 0; i < MAX_PROCESSES; i++)
        if (processes[i].state == ASLEEP && processes[i].wake < first)
            first = processes[i].wake;
    timer_set(first);
    if (para) {
        para_idle();
        for (u64 number = 0, pending = para->pending; pending >> number; number++)
            if (pending >> number & 1)
                interrupt(number);
        return;
    }
    wfi();  // an interrupt ends it even while they are off
    csr_set(sstatus, SSTATUS_SIE);
    csr_clear(sstatus, SSTATUS_SIE);
}

// Gives the hart to the next one who can use it. The caller has set its own state.
static void schedule(void)
{
    struct process *from = current, *to;
    u64 now = timer_now();

    from->ran += now - turn_began;
    while (!(to = next_ready()))
        idle();
    now = timer_now();
    turn_began = now;
    to->state = RUNNING;
    to->switches++;
    if (to->frame)
        timer_set(now + timer_ms(1));
    if (to == from)
        return;
    leave_fp(from);
    enter_fp(to);
    current = to;
    vm_use(to->space.root ? to->space.root : kernel_root);
    context_switch(&from->context, &to->context);
}

void process_yield(void)
{
    current->state = READY;
    schedule();
}

// Sleeps until somebody wakes the channel, or until a time. False: killed, or about to be.
bool process_sleep(const void *channel, u64 until)
{
    if (current->killed)
        return false;
    current->channel = channel;
    current->wake = until;
    current->state = ASLEEP;
    schedule();
    current->channel = NULL;
    return !current->killed;
}

void process_wake(const void *channel)
{
    for (u32 i = 0; i < MAX_PROCESSES; i++)
        if (processes[i].state == ASLEEP && processes[i].channel == channel)
            processes[i].state = READY;
}

bool process_kill(int pid)
{
    bool found = false;

    for (u32 i = 1; i < MAX_PROCESSES; i++) {
        struct process *p = &processes[i];

        if ((p->pid == pid || pid == EVERYBODY) && p->state != FREE && p->state != ENDED) {
            p->killed = found = true;
            if (p->state == ASLEEP)
                p->state = READY;
        }
    }
    return found;
}

// A free slot, with a frame on top of its kernel stack that trap_return will load.
static struct process *create(const char *name)
{
    for (u32 i = 1; i < MAX_PROCESSES; i++) {
        struct process *p = &processes[i];

        if (p->state != FREE)
            continue;
        memset(p, 0, sizeof *p);
        p->pid = ++last_pid;
        p->parent = current->pid;
        strlcpy(p->name, name, sizeof p->name);
        p->frame = (struct frame *)(stacks[i] + KERNEL_STACK) - 1;
        memset(p->frame, 0, sizeof *p->frame);
        p->context.ra = (u64)trap_return;
        p->context.sp = (u64)p->frame;
        return p;
    }
    return NULL;
}

// Puts the words of a command on the new stack: the strings, then argv[]. False: they do not fit.
static bool push_arguments(struct process *p, int argc, char **argv)
{
    u64 sp = USER_TOP, pointers[8];

    if (argc > (int)COUNT(pointers) - 1)
        return false;
    for (int i = 0; i < argc; i++) {
        u64 size = strlen(argv[i]) + 1;

        sp -= size;
        pointers[i] = sp;
        if (!copy_out(&p->space, sp, argv[i], size))
            return false;
    }
    pointers[argc] = 0;
    sp = ROUND_DOWN(sp - 8ul * (u32)(argc + 1), 16);
    p->frame->a0 = (u64)argc;
    p->frame->a1 = p->frame->sp = sp;
    return copy_out(&p->space, sp, pointers, 8ul * (u32)(argc + 1));
}

// Starts a program in a process of its own. The pid, or 0.
int process_run(const struct program *program, int argc, char **argv)
{
    struct process *p = create(program->name);

    if (!p || !space_create(&p->space))
        return 0;
    if (!program_load(&p->space, program, &p->frame->pc) || !push_arguments(p, argc, argv)) {
        space_destroy(&p->space);
        return 0;
    }
    p->frame->sstatus = SSTATUS_SPIE | (machine.isa & ISA_D ? SSTATUS_FS_INITIAL : 0);
    p->state = READY;
    return p->pid;
}

// A copy of the running process, which sees 0 as the result.
int process_fork(void)
{
    struct process *p = create(current->name);

    if (!p || !space_fork(&p->space, &current->space))
        return 0;
    leave_fp(current);
    memcpy(p->fp, current->fp, sizeof p->fp);
    *p->frame = *current->frame;
    p->frame->a0 = 0;
    for (u32 i = 0; i < MAX_FILES; i++)
        if (current->files[i]) {
            p->files[i] = current->files[i];
            p->writes[i] = current->writes[i];
            pipe_share(p->files[i], p->writes[i]);
        }
    p->state = READY;
    return p->pid;
}

void process_exit(int status)
{
    struct process *p = current;

    for (u32 i = 0; i < MAX_FILES; i++)
        if (p->files[i])
            pipe_close(p->files[i], p->writes[i]);
    for (u32 i = 1; i < MAX_PROCESSES; i++)
        if (processes[i].parent == p->pid)
            processes[i].parent = 0;
    vm_use(kernel_root);
    space_destroy(&p->space);
    if (fp_owner == p)
        fp_owner = NULL;
    p->frame = NULL;
    p->status = status;
    p->state = ENDED;
    for (u32 i = 0; i < MAX_PROCESSES; i++)
        if (processes[i].pid == p->parent)
            process_wake(&processes[i]);
    schedule();
    panic("an ended process runs");
}

// Frees a child that has ended, `pid` or with 0 any. Its pid; 0: none has ended; -1: there is none.
static int reap(int pid, int *status, char *name)
{
    int found = -1;

    for (u32 i = 1; i < MAX_PROCESSES; i++) {
        struct process *p = &processes[i];

        if (p->state == FREE || p->parent != current->pid || (pid && p->pid != pid))
            continue;
        if (p->state == ENDED) {
            *status = p->status;
            if (name)
                strlcpy(name, p->name, sizeof p->name);
            p->state = FREE;
            return p->pid;
        }
        found = 0;
    }
    return found;
}

int process_reap(int *status, char *name)
{
    return reap(0, status, name);
}

int process_wait(int pid, int *status)
{
    int ended;

    while ((ended = reap(pid, status, NULL)) == 0)
        if (!process_sleep(current, FOREVER))
            return -1;
    return ended;
}
