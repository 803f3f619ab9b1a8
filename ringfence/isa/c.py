"""C: each compressed row is another row (unprivileged manual, chapter "C", tables of the three quadrants)."""

from ringfence.isa.spec import compressed

# The defined illegal instruction and the reserved encodings are those that no row matches.
_RD_RS1 = {"rd": "rs1'", "rs1": "rs1'"}

compressed("c.addi4spn 000 nzuimm[5:4|9:6|2|3] rd' 00", "addi", rd="rd'", rs1=2, imm="uimm")
compressed("c.fld      001 uimm[5:3] rs1' uimm[7:6] rd' 00", "fld", fd="rd'", rs1="rs1'", imm="uimm")
compressed("c.lw       010 uimm[5:3] rs1' uimm[2|6] rd' 00", "lw", rd="rd'", rs1="rs1'", imm="uimm")
compressed("c.ld       011 uimm[5:3] rs1' uimm[7:6] rd' 00", "ld", rd="rd'", rs1="rs1'", imm="uimm")
compressed("c.fsd      101 uimm[5:3] rs1' uimm[7:6] rs2' 00", "fsd", fs2="rs2'", rs1="rs1'", imm="uimm")
compressed("c.sw       110 uimm[5:3] rs1' uimm[2|6] rs2' 00", "sw", rs2="rs2'", rs1="rs1'", imm="uimm")
compressed("c.sd       111 uimm[5:3] rs1' uimm[7:6] rs2' 00", "sd", rs2="rs2'", rs1="rs1'", imm="uimm")

compressed("c.addi     000 simm[5] rd simm[4:0] 01", "addi", rs1="rd", imm="simm")
compressed("c.addiw    001 simm[5] nzrd simm[4:0] 01", "addiw", rs1="rd", imm="simm")
compressed("c.li       010 simm[5] rd simm[4:0] 01", "addi", imm="simm")
compressed("c.addi16sp 011 nzsimm[9] 00010 nzsimm[4|6|8:7|5] 01", "addi", rd=2, rs1=2, imm="simm")
compressed("c.lui      011 nzsimm[17] rd nzsimm[16:12] 01", "lui", imm="simm")
compressed("c.srli     100 shamt[5] 00 rs1' shamt[4:0] 01", "srli", **_RD_RS1)
compressed("c.srai     100 shamt[5] 01 rs1' shamt[4:0] 01", "srai", **_RD_RS1)
compressed("c.andi     100 simm[5] 10 rs1' simm[4:0] 01", "andi", **_RD_RS1, imm="simm")
for _name, _high, _low in (
    ("sub", "0", "00"), ("xor", "0", "01"), ("or", "0", "10"), ("and", "0", "11"),
    ("subw", "1", "00"), ("addw", "1", "01"),
):  # fmt: skip
    compressed(f"c.{_name} 100 {_high} 11 rs1' {_low} rs2' 01", _name, **_RD_RS1, rs2="rs2'")
compressed("c.j        101 simm[11|4|9:8|10|6|7|3:1|5] 01", "jal", rd=0, imm="simm")
compressed("c.beqz     110 simm[8|4:3] rs1' simm[7:6|2:1|5] 01", "beq", rs1="rs1'", rs2=0, imm="simm")
compressed("c.bnez     111 simm[8|4:3] rs1' simm[7:6|2:1|5] 01", "bne", rs1="rs1'", rs2=0, imm="simm")

compressed("c.slli     000 shamt[5] rd shamt[4:0] 10", "slli", rs1="rd")
compressed("c.fldsp    001 uimm[5] fd uimm[4:3|8:6] 10", "fld", rs1=2, imm="uimm")
compressed("c.lwsp     010 uimm[5] nzrd uimm[4:2|7:6] 10", "lw", rs1=2, imm="uimm")
compressed("c.ldsp     011 uimm[5] nzrd uimm[4:3|8:6] 10", "ld", rs1=2, imm="uimm")
compressed("c.jr       100 0 nzrs1 00000 10", "jalr", rd=0, imm=0)
compressed("c.mv       100 0 rd nzrs2 10", "add", rs1=0)
compressed("c.ebreak   100 1 00000 00000 10", "ebreak")
compressed("c.jalr     100 1 nzrs1 00000 10", "jalr", rd=1, imm=0)
compressed("c.add      100 1 rd nzrs2 10", "add", rs1="rd")
compressed("c.fsdsp    101 uimm[5:3|8:6] fs2 10", "fsd", rs1=2, imm="uimm")
compressed("c.swsp     110 uimm[5:2|7:6] rs2 10", "sw", rs1=2, imm="uimm")
compressed("c.sdsp     111 uimm[5:3|8:6] rs2 10", "sd", rs1=2, imm="uimm")
