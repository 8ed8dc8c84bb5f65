/* Physical pages, which the model hands out in the order of first touch: cache sets then do not depend on where the loader put things. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "a53.h"

#define NO_TAG UINT64_MAX

static struct {
    uint64_t *virtual_pages, *physical_pages, size, used;
} pages;
static pthread_mutex_t pages_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t page_slot(const uint64_t *table, uint64_t size, uint64_t page)
{
    uint64_t slot = (page * 0x9e3779b97f4a7c15ull) >> 20 & (size - 1);
    while (table[slot] != NO_TAG && table[slot] != page) slot = (slot + 1) & (size - 1);
    return slot;
}

static void pages_grow(void)
{
    const uint64_t size = pages.size ? pages.size * 2 : 4096;
    uint64_t *virtual_pages = malloc(size * sizeof *virtual_pages), *physical_pages = malloc(size * sizeof *physical_pages);
    memset(virtual_pages, 0xff, size * sizeof *virtual_pages);
    for (uint64_t i = 0; i < pages.size; i++) {
        if (pages.virtual_pages[i] == NO_TAG) continue;
        const uint64_t slot = page_slot(virtual_pages, size, pages.virtual_pages[i]);
        virtual_pages[slot] = pages.virtual_pages[i];
        physical_pages[slot] = pages.physical_pages[i];
    }
    free(pages.virtual_pages);
    free(pages.physical_pages);
    pages.virtual_pages = virtual_pages, pages.physical_pages = physical_pages, pages.size = size;
}

bool page_is_known(uint64_t page)
{
    pthread_mutex_lock(&pages_lock);
    const bool known = pages.size && pages.virtual_pages[page_slot(pages.virtual_pages, pages.size, page)] == page;
    pthread_mutex_unlock(&pages_lock);
    return known;
}

uint64_t physical_page(uint64_t page)
{
    pthread_mutex_lock(&pages_lock);
    if (pages.used * 2 >= pages.size) pages_grow();
    const uint64_t slot = page_slot(pages.virtual_pages, pages.size, page);
    if (pages.virtual_pages[slot] == NO_TAG) {
        pages.virtual_pages[slot] = page;
        pages.physical_pages[slot] = ++pages.used;
    }
    const uint64_t physical = pages.physical_pages[slot];
    pthread_mutex_unlock(&pages_lock);
    return physical;
}

uint64_t memory_translate(uint64_t address)
{
    return physical_page(address >> PAGE_SHIFT) << PAGE_SHIFT | (address & ((1 << PAGE_SHIFT) - 1));
}
