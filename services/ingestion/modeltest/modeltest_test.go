package modeltest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// run gives a history to the service and the model and returns the first
// difference, or "". thorough also compares at the checkpoints on the way.
func run(t *testing.T, s *setup, steps []step) (diff string) {
	t.Helper()
	dir := folder(t)
	defer func() { _ = os.RemoveAll(dir) }()
	v, err := newService(dir, s)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := v.close(); err != nil {
			t.Error(err)
		}
	}()
	w := newWorld(s)
	for i, st := range steps {
		v.now = v.now.Add(st.Advance)
		if st.Request != nil {
			if d := exchange(t, v, w, st.Request); d != "" {
				return fmt.Sprintf("step %d: %s", i, d)
			}
		}
		if st.Restart {
			w.restart()
			if err := v.close(); err != nil {
				t.Fatal(err)
			}
			if err := v.open(); err != nil {
				t.Fatal(err)
			}
		}
		if !st.Check {
			continue
		}
		for _, p := range w.projects {
			got, err := v.view(p)
			if err != nil {
				t.Fatal(err)
			}
			if d := difference(p.view(v.now.UnixMilli()), got); d != "" {
				return fmt.Sprintf("step %d: project %d: %s", i, p.id, d)
			}
		}
	}
	return ""
}

func exchange(t *testing.T, v *service, w *world, r *request) string {
	t.Helper()
	got, text, err := v.send(r)
	if err != nil {
		t.Fatal(err)
	}
	digit, full := expect(r, w.take(r, v.now.UnixMilli()))
	switch {
	case digit != "" && text != digit:
		return fmt.Sprintf("the answer differs\n  model:   %s\n  service: %s", digit, text)
	case full != nil && full.String() != got.String():
		return fmt.Sprintf("the answer differs\n  model:   %v\n  service: %v %s", full, got, text)
	}
	return ""
}

// folder makes a place for a service, in memory where there is such a place.
func folder(t *testing.T) string {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = t.TempDir()
	}
	dir, err := os.MkdirTemp(base, "cohortbridge-model-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// shrink drops what a failure does not need: first steps, then items.
func shrink(t *testing.T, s *setup, steps []step, first string, until time.Time) ([]step, string) {
	t.Helper()
	last := first
	fails := func(c []step) bool {
		if time.Now().After(until) {
			return false
		}
		d := run(t, s, append(slices.Clone(c), step{Check: true}))
		if kind(d) != kind(first) {
			return false
		}
		last = d
		return true
	}
	for size := len(steps) / 2; size > 0; size /= 2 {
		for at := 0; at < len(steps); {
			end := min(at+size, len(steps))
			c := slices.Concat(steps[:at], steps[end:])
			// Time passes all the same.
			var passed time.Duration
			for _, st := range steps[at:end] {
				passed += st.Advance
			}
			if passed > 0 && (end-at > 1 || steps[at].Advance == 0) {
				c = slices.Concat(steps[:at], []step{{Advance: passed}}, steps[end:])
			}
			if len(c) < len(steps) && fails(c) {
				steps = c
			} else {
				at = end
			}
		}
	}
	for i := range steps {
		if steps[i].Request == nil {
			continue
		}
		for size := len(steps[i].Request.Items) / 2; size > 0; size /= 2 {
			for at := 0; at < len(steps[i].Request.Items) && len(steps[i].Request.Items) > 1; {
				q := *steps[i].Request
				end := min(at+size, len(q.Items))
				q.Items = slices.Concat(q.Items[:at], q.Items[end:])
				c := slices.Clone(steps)
				c[i].Request = &q
				if len(q.Items) > 0 && fails(c) {
					steps = c
				} else {
					at = end
				}
			}
		}
	}
	return steps, last
}

// kind is what a difference is about: answers, events, profiles …, so that a
// history that shrinks does not slip from one failure into another.
func kind(diff string) string {
	_, model, _ := strings.Cut(diff, "model:")
	if strings.Contains(diff, "the answer differs") {
		return "answer"
	}
	kind, _, _ := strings.Cut(strings.TrimSpace(model), " ")
	return kind
}

func env(t *testing.T, name string, def int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestRandomHistoriesGiveWhatTheModelGives runs COHORTBRIDGE_MODEL_SEEDS histories
// from seed COHORTBRIDGE_MODEL_FIRST on. One that fails is shrunk, unless
// COHORTBRIDGE_MODEL_SHRINK is 0.
func TestRandomHistoriesGiveWhatTheModelGives(t *testing.T) {
	first, seeds := env(t, "COHORTBRIDGE_MODEL_FIRST", 0), env(t, "COHORTBRIDGE_MODEL_SEEDS", 6)
	lane := make(chan struct{}, 2)
	for seed := first; seed < first+seeds; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			lane <- struct{}{}
			defer func() { <-lane }()
			s, steps := generate(uint64(seed)) //nolint:gosec // a small number
			diff := run(t, &s, steps)
			if diff == "" {
				return
			}
			if env(t, "COHORTBRIDGE_MODEL_SHRINK", 1) == 0 {
				t.Fatalf("seed %d: %s", seed, diff)
			}
			var b strings.Builder
			short, last := shrink(t, &s, steps, diff, time.Now().Add(2*time.Minute))
			for _, st := range short {
				j, err := json.Marshal(st)
				if err != nil {
					t.Fatal(err)
				}
				b.WriteString("  " + string(j) + "\n")
			}
			t.Errorf("seed %d: %s\nshrunk to %d steps on %+v:\n%s%s", seed, diff, len(short), s, b.String(), last)
		})
	}
}
