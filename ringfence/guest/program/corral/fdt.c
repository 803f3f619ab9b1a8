// fdt.c: reads a flattened device tree (Devicetree Specification, chapter 5) where it lies.
//
// The tree is a list of big-endian words: a node begins, its properties follow, then its
// children, then it ends. A cursor goes over the nodes in that order and remembers
// #address-cells and #size-cells of every level above it, as `reg` needs its parent's.
#include "corral.h"

enum { BEGIN_NODE = 1, END_NODE = 2, PROP = 3, NOP = 4 };

static const u8 *blob;
static const char *strings;

// The tree and all in it that is read as a number are aligned to words.
static u32 be32(const void *p)
{
    return __builtin_bswap32(*(const u32 *)p);
}

u64 fdt_number(const void *cells, u32 count)
{
    u64 value = 0;

    for (const u8 *p = cells; count--; p += 4)
        value = value << 32 | be32(p);
    return value;
}

bool fdt_open(const void *tree)
{
    blob = tree;
    if ((u64)tree % 4 || be32(blob) != 0xd00dfeed)
        return false;
    strings = (const char *)blob + be32(blob + 12);
    return true;
}

void fdt_start(struct fdt_node *node)
{
    memset(node, 0, sizeof *node);
    node->at = blob + be32(blob + 8);
    node->depth = -1;
}

// Moves to the next node; false at the end of the tree.
bool fdt_next(struct fdt_node *node)
{
    for (;;) {
        u32 token = be32(node->at);

        node->at += 4;
        if (token == END_NODE) {
            node->depth--;
        } else if (token == BEGIN_NODE) {
            if (++node->depth >= FDT_DEPTH)
                return false;
            break;
        } else if (token != NOP) {
            return false;
        }
    }

    node->name = (const char *)node->at;
    node->at += ROUND_UP(strlen(node->name) + 1, 4);
    node->properties = node->at;
    node->address_cells[node->depth] = 2;
    node->size_cells[node->depth] = 1;
    node->compatible = NULL;
    node->compatible_length = 0;
    for (;;) {
        u32 token = be32(node->at);

        if (token == NOP) {
            node->at += 4;
        } else if (token == PROP) {
            const char *name = strings + be32(node->at + 8);

            // What nearly every node is asked for is picked up on the way.
            if (name[0] == 'c' && strcmp(name, "compatible") == 0) {
                node->compatible = (const char *)node->at + 12;
                node->compatible_length = be32(node->at + 4);
            } else if (name[0] == '#' && strcmp(name, "#address-cells") == 0) {
                node->address_cells[node->depth] = be32(node->at + 12);
            } else if (name[0] == '#' && strcmp(name, "#size-cells") == 0) {
                node->size_cells[node->depth] = be32(node->at + 12);
            }
            node->at += 12 + ROUND_UP(be32(node->at + 4), 4);
        } else {
            return true;
        }
    }
}

const void *fdt_get(const struct fdt_node *node, const char *name, u32 *length)
{
    const u8 *p = node->properties;

    for (u32 token; (token = be32(p)) == PROP || token == NOP;) {
        if (token == NOP) {
            p += 4;
            continue;
        }
        if (strcmp(strings + be32(p + 8), name) == 0) {
            if (length)
                *length = be32(p + 4);
            return p + 12;
        }
        p += 12 + ROUND_UP(be32(p + 4), 4);
    }
    return NULL;
}

u64 fdt_get_number(const struct fdt_node *node, const char *name, u64 otherwise)
{
    u32 length;
    const void *cells = fdt_get(node, name, &length);

    return cells && (length == 4 || length == 8) ? fdt_number(cells, length / 4) : otherwise;
}

// Whether one string of a list of strings, each ending in a zero byte, is `word`.
static bool lists(const char *s, u32 length, const char *word)
{
    for (const char *end = s + length; s < end; s += strlen(s) + 1)
        if (strcmp(s, word) == 0)
            return true;
    return false;
}

bool fdt_lists(const struct fdt_node *node, const char *name, const char *word)
{
    u32 length = 0;
    const char *list = fdt_get(node, name, &length);

    return lists(list, length, word);
}

// A device that is switched off does not count.
bool fdt_compatible(const struct fdt_node *node, const char *device)
{
    const char *status;

    if (!lists(node->compatible, node->compatible_length, device))
        return false;
    status = fdt_get(node, "status", NULL);
    return !status || status[0] == 'o';
}

// The interrupt line: of the controller above, or behind the number of the controller.
u32 fdt_irq(const struct fdt_node *node)
{
    u32 length = 0;
    const u8 *pair = fdt_get(node, "interrupts-extended", &length);

    return length == 8 ? be32(pair + 4) : (u32)fdt_get_number(node, "interrupts", 0);
}

// The first range of `reg`.
bool fdt_reg(const struct fdt_node *node, u64 *base, u64 *size)
{
    u32 length, above = (u32)(node->depth ? node->depth - 1 : 0);
    u32 a = node->address_cells[above], s = node->size_cells[above];
    const u8 *cells = fdt_get(node, "reg", &length);

    if (!cells || length < 4 * (a + s))
        return false;
    *base = fdt_number(cells, a);
    *size = fdt_number(cells + 4 * a, s);
    return true;
}
