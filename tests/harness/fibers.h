// A stack of one's own, and changing to another: x86-64 by hand, elsewhere by ucontext (ten times slower).
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

extern "C" void harness_switch(void** save, void* load);
asm(R"(
.text
.globl harness_switch
harness_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

struct Context {
  void* stack = nullptr;
  void begin(unsigned char* memory, std::size_t size, void (*entry)()) {
    auto top = reinterpret_cast<std::uintptr_t>(memory + size) & ~std::uintptr_t{15};
    void** frame = reinterpret_cast<void**>(top) - 8;  // six registers, the entry, and no return address
    for (int i = 0; i < 8; ++i) frame[i] = nullptr;
    frame[6] = reinterpret_cast<void*>(entry);
    stack = frame;
  }
  static void change(Context& from, Context& to) { harness_switch(&from.stack, to.stack); }
};

#else
#include <ucontext.h>

struct Context {
  ucontext_t context;
  void begin(unsigned char* memory, std::size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = memory;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
};

#endif
