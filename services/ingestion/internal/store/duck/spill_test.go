package duck

import (
	"math/rand/v2"
	"os"
	"testing"
)

func TestADayBeyondTheBudgetIsExactAndHoldsNoMoreThanTheBudget(t *testing.T) {
	const budget, events = 4096, 300_000
	dir := t.TempDir()
	d := newDedupe(dir, budget)
	defer d.close()
	set, err := newHashSet(0)
	if err != nil {
		t.Fatal(err)
	}
	k := dayKey{1, 20_000}
	d.days[k] = &daySet{set: set}
	rng := rand.New(rand.NewPCG(1, 2))
	known := map[uint64]bool{}
	var list []uint64
	for i := range events {
		h := rng.Uint64()
		switch {
		case i%7 == 3: // one that came before, long ago or just now
			h = list[rng.IntN(len(list))]
		case i == 5000:
			h = 0
		}
		isNew, err := d.add(d.days[k], h)
		if err != nil {
			t.Fatal(err)
		}
		if isNew == known[h] {
			t.Fatalf("event %d: new %v, known %v", i, isNew, known[h])
		}
		if !known[h] {
			known[h] = true
			list = append(list, h)
		}
		if i%100 == 99 {
			if err := d.shrink(); err != nil {
				t.Fatal(err)
			}
			if d.held > budget {
				t.Fatalf("%d hashes in memory, the budget is %d", d.held, budget)
			}
		}
	}
	rest := d.days[k].rest
	if rest == nil || len(rest.runs) > 60 {
		t.Fatalf("files %v", rest)
	}
	n := d.days[k].set.n
	for _, r := range rest.runs {
		n += r.n
	}
	if n != len(known) {
		t.Errorf("%d hashes held, want %d", n, len(known))
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("files that would outlive the process: %v, %v", left, err)
	}
	if again, err := d.add(d.days[k], 0); again || err != nil {
		t.Errorf("0 is new again: %v", err)
	}
}

func TestTheFilterPassesFewHashesThatItHasNot(t *testing.T) {
	const full = 2 << 20
	f, err := newFilter(full)
	if err != nil {
		t.Fatal(err)
	}
	defer unmapWords(f.words)
	rng := rand.New(rand.NewPCG(3, 4))
	var some []uint64
	for i := range full {
		h := rng.Uint64()
		f.add(h)
		if i%1000 == 0 {
			some = append(some, h)
		}
	}
	for _, h := range some {
		if !f.mayHave(h) {
			t.Fatal("a hash that was added is not found")
		}
	}
	passed := 0
	const asked = 200_000
	for range asked {
		if f.mayHave(rng.Uint64()) {
			passed++
		}
	}
	if passed > asked*4/100 {
		t.Errorf("a full filter passes %d of %d", passed, asked)
	}
	t.Logf("a full filter passes %.2f %%", float64(passed)*100/asked)
}
