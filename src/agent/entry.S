/* Ways in and out of the agent. */
    .section .header, "a"
    .globl hu_header
hu_header:
    .quad 0x3165646172677075        /* HU_MAGIC */
    .quad 3                         /* HU_ABI */
    .quad hu_enter - hu_header
    .quad hu_handler - hu_header
    .quad hu_restorer - hu_header
    .quad hu_mailbox - hu_header
    .quad hu_text_size - hu_header
    .quad hu_total_size - hu_header
    .quad hu_landing - hu_header
    .quad hu_site - hu_header

    .text
/* A thread sent here by the tool: rsp points at its struct hu_frame.  It leaves with every register, the flags and the red
 * zone as they were; "ret $128" steps over the red zone and needs no register. */
    .globl hu_enter
hu_enter:
    cld
    mov %rsp, %rbx
    and $-64, %rsp
    mov %rbx, %rdi
    call hu_dispatch
    lea 40(%rbx), %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rax
    pop %rcx
    pop %rdx
    pop %rsi
    pop %rdi
    popfq
    ret $128

    .globl hu_handler
hu_handler:
    jmp hu_handle

    .globl hu_restorer
hu_restorer:
    mov $15, %eax                   /* rt_sigreturn */
    syscall
    hlt

/* A loop, or a call that it slept in, has returned to here instead of to its caller.  Only rax, rdx and the registers that
 * a call keeps have meaning now. */
    .globl hu_landing
hu_landing:
    sub $8, %rsp                    /* rsp points at the slot that led here */
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    push %rax
    push %rdx
    push %rdi
    push $0                         /* stack */
    push $0                         /* target */
    mov %rsp, %rdi
    lea 88(%rsp), %rsi              /* the slot */
    mov %rsp, %rbx
    and $-64, %rsp
    call hu_land
    mov %rbx, %rsp
    pop %r11
    pop %r10
    pop %rdi
    pop %rdx
    pop %rax
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    mov %r10, %rsp
    jmp *%r11

/* A call in a loop comes by: a stub of the tool has pushed the number of the site.  Skip the call, or go on to what is
 * called, with every register that may hold an argument as it was. */
    .globl hu_site
hu_site:
    push %rax
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    mov %rsp, %rdi
    call hu_pass
    test %eax, %eax
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rax
    jnz 1f
    ret                             /* to what is called */
1:  lea 8(%rsp), %rsp
    ret

    .section .note.GNU-stack, "", @progbits
