"""What depends on the host's processor: the control and status register of its floating-point unit (Intel SDM volume
1, section 10.2.3).

MXCSR: flags IE DE ZE OE UE PE in bits 0 to 5, masks in 7 to 12, rounding control in 13 and 14. The guest's flags
accrue in it while native code runs.
"""

MASKED = 0x1F80
_ROUNDING = 0b10_01_11_00  # RISC-V's RNE RTZ RDN RUP as two bits each: 0 3 1 2


def functions(control: int, host_control: int, fflags: int, frm: int) -> str:
    """Helpers over the state's fields at these byte offsets."""
    return f"""
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)

define internal i64 @host_flags(ptr %state) nounwind {{
  %p = getelementptr i8, ptr %state, i64 {control}
  call void @llvm.x86.sse.stmxcsr(ptr %p)
  %v = load i64, ptr %p
  %nv = shl i64 %v, 4
  %nv1 = and i64 %nv, 16
  %dz = shl i64 %v, 1
  %dz1 = and i64 %dz, 8
  %of = lshr i64 %v, 1
  %of1 = and i64 %of, 4
  %uf = lshr i64 %v, 3
  %uf1 = and i64 %uf, 2
  %nx = lshr i64 %v, 5
  %nx1 = and i64 %nx, 1
  %a = or i64 %nv1, %dz1
  %b = or i64 %of1, %uf1
  %c = or i64 %a, %b
  %d = or i64 %c, %nx1
  ret i64 %d
}}

define internal void @host_flags_clear(ptr %state) nounwind {{
  %p = getelementptr i8, ptr %state, i64 {control}
  call void @llvm.x86.sse.stmxcsr(ptr %p)
  %v = load i64, ptr %p
  %w = and i64 %v, {~63 & 0xFFFFFFFF}
  store i64 %w, ptr %p
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  ret void
}}

define internal void @host_rounding(ptr %state, i64 %mode) nounwind {{
  %p = getelementptr i8, ptr %state, i64 {control}
  call void @llvm.x86.sse.stmxcsr(ptr %p)
  %v = load i64, ptr %p
  %w = and i64 %v, {~0x6000 & 0xFFFFFFFF}
  %known = icmp ult i64 %mode, 4
  %m = select i1 %known, i64 %mode, i64 0
  %twice = shl i64 %m, 1
  %field = lshr i64 {_ROUNDING}, %twice
  %rc = and i64 %field, 3
  %at = shl i64 %rc, 13
  %x = or i64 %w, %at
  store i64 %x, ptr %p
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  ret void
}}

define internal void @host_enter(ptr %state) nounwind {{
  %h = getelementptr i8, ptr %state, i64 {host_control}
  call void @llvm.x86.sse.stmxcsr(ptr %h)
  %p = getelementptr i8, ptr %state, i64 {control}
  store i64 {MASKED}, ptr %p
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  %f = getelementptr i8, ptr %state, i64 {frm}
  %mode = load i64, ptr %f
  call void @host_rounding(ptr %state, i64 %mode)
  ret void
}}

define internal void @host_leave(ptr %state) nounwind {{
  %new = call i64 @host_flags(ptr %state)
  %f = getelementptr i8, ptr %state, i64 {fflags}
  %old = load i64, ptr %f
  %all = or i64 %old, %new
  store i64 %all, ptr %f
  %h = getelementptr i8, ptr %state, i64 {host_control}
  call void @llvm.x86.sse.ldmxcsr(ptr %h)
  ret void
}}
"""
