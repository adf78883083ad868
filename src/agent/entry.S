/* Ways in and out of the agent. */
    .section .header, "a"
    .globl hu_header
hu_header:
    .quad 0x3165646172677075        /* HU_MAGIC */
    .quad 2                         /* HU_ABI */
    .quad hu_enter - hu_header
    .quad hu_handler - hu_header
    .quad hu_restorer - hu_header
    .quad hu_mailbox - hu_header
    .quad hu_text_size - hu_header
    .quad hu_total_size - hu_header

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

    .section .note.GNU-stack, "", @progbits
