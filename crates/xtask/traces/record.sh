#!/usr/bin/env bash
# Records sqlite.zst: which pages of its database sqlite3 uses, while it answers queries from a mapping of it. The database
# and the queries are generated; the accesses are what valgrind saw. Takes some ten minutes; needs sqlite3, valgrind, gcc,
# python3, zstd. Recorded with sqlite3 3.40.1 and valgrind 3.19.0 on x86-64.
set -euo pipefail
out=$(realpath "$(dirname "$0")")/sqlite.zst
cd "$(mktemp -d)"

# 20 MiB in 4 KiB pages, with indices in another order than the tables.
sqlite3 db <<'SQL'
PRAGMA page_size=4096; PRAGMA journal_mode=off;
CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT, city INTEGER, notes TEXT);
CREATE TABLE orders(id INTEGER PRIMARY KEY, customer INTEGER, day INTEGER, amount INTEGER, item INTEGER, remark TEXT);
CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price INTEGER, description TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000)
 INSERT INTO customer SELECT i, printf('customer %d',i), (i*7919)%200, hex(zeroblob(60)) FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<5000)
 INSERT INTO item SELECT i, printf('item %d',i), (i*31)%997, hex(zeroblob(100)) FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<200000)
 INSERT INTO orders SELECT i, 1+(i*48271)%20000, i/500, (i*13)%10007, 1+(i*69621)%5000, hex(zeroblob(20)) FROM n;
CREATE INDEX orders_customer ON orders(customer);
CREATE INDEX orders_day ON orders(day);
CREATE INDEX customer_city ON customer(city);
SQL

# Some customers come often, recent days are asked for more than old ones, and now and then all orders are summed up. Six
# sessions, for valgrind's sake; the first queries of each make the mapping and tell where it is.
python3 - <<'PY'
import random
random.seed(1)
head = ["PRAGMA mmap_size=1073741824;", "SELECT count(*) FROM item WHERE id=1;", ".shell cat /proc/$PPID/maps > maps"]
def customer():
    return min(20000, int(random.paretovariate(0.6) * 7) * 7919 % 20000 + 1)
queries = []
for n in range(3000):
    kind = random.random()
    if kind < .80:
        queries.append("SELECT count(*), sum(o.amount), max(i.name) FROM customer c JOIN orders o ON o.customer=c.id"
                       f" JOIN item i ON i.id=o.item WHERE c.id={customer()};")
    elif kind < .95:
        day = 399 - int(random.expovariate(1 / 15))
        queries.append(f"SELECT sum(amount*price) FROM orders JOIN item ON item.id=item WHERE day={day}"
                       f" AND customer % 20 = {n % 20};")
    else:
        queries.append(f"SELECT count(*), max(name) FROM customer WHERE city={random.randrange(200)};")
    if n % 600 == 599:
        queries.append("")
for i in range(6):
    part = [q for q in queries[i * 350:(i + 1) * 350] if q]
    if i % 2:
        part.insert(175, "SELECT sum(amount) FROM orders;")
    open(f"part{i}.sql", "w").write("\n".join(head + part) + "\n")
PY

# Of the addresses that were accessed, those in the mapping: pages, each once as long as no other comes between.
cat > filter.c <<'C'
#include <stdio.h>
#include <stdlib.h>
int main(int count, char **arguments) {
    unsigned long base = strtoul(arguments[1], 0, 16), end = strtoul(arguments[2], 0, 16), last = -1;
    char line[256];
    while (fgets(line, sizeof line, stdin)) {
        if (line[0] != ' ' || (line[1] != 'L' && line[1] != 'S' && line[1] != 'M')) continue;
        unsigned long address = strtoul(line + 3, 0, 16);
        if (address < base || address >= end || (address - base) >> 12 == last) continue;
        printf("%lu\n", last = (address - base) >> 12);
    }
}
C
gcc -O2 -o filter filter.c
watch() { setarch -R valgrind --tool=lackey --trace-mem=yes --log-fd=9 sqlite3 db 9>&1 >/dev/null 2>/dev/null; }
head -3 part0.sql | watch >/dev/null
read -r base end < <(awk '$2 == "r--s" && /\/db$/ { split($1, a, "-"); print a[1], a[2] }' maps)
for i in 0 1 2 3 4 5; do watch < part$i.sql | ./filter "$base" "$end"; done > pages

# The differences of consecutive page numbers: zigzag, LEB128, zstd.
python3 - <<'PY' | zstd --ultra -22 -q -f -o "$out"
import sys
packed, last = bytearray(), 0
for page in map(int, open("pages")):
    delta, last = page - last, page
    number = delta << 1 ^ delta >> 63
    while number >= 128:
        packed.append(number & 127 | 128)
        number >>= 7
    packed.append(number)
sys.stdout.buffer.write(packed)
PY
