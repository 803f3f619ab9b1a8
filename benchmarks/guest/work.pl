# For Perl in the guest: lines taken apart by an expression, counted, sorted and put together again.
use strict;
use warnings;
my %seen;
my $length = 0;
for my $n (1 .. 25_000) {
    my $line = sprintf "%08x user%d GET /page/%d?id=%d", $n * 2654435761 % 4294967296, $n % 97, $n % 1009, $n;
    if ($line =~ m{^([0-9a-f]+) (user\d+) (\w+) (/\w+/\d+)\?id=(\d+)$}) {
        $seen{"$2 $4"} += $5;
        $length += length join ",", reverse split /\//, $4;
    }
}
my @most = sort { $seen{$b} <=> $seen{$a} || $a cmp $b } keys %seen;
print "$length $most[0] $seen{$most[0]}\n";
