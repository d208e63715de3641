package gateway

import (
	"fmt"
	"testing"
	"time"
)

func TestARateIsOverARollingWindowAndSaysWhenToComeBack(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	l := newLimiter(5, 2, 0)
	l.now = func() time.Time { return now }
	enter := func(project string) time.Duration {
		leave, wait := l.enter(project)
		if (leave == nil) != (wait > 0) {
			t.Fatalf("let in: %v, wait %v", leave != nil, wait)
		}
		if leave != nil {
			leave()
		}
		return wait
	}
	for i, step := range []struct {
		after, wait time.Duration
	}{
		{0, 0}, {0, 0}, {0, time.Second}, {400 * time.Millisecond, 600 * time.Millisecond}, // two a second
		{600 * time.Millisecond, 0}, {0, 0}, {time.Minute, 0},
		{time.Minute, time.Hour - 2*time.Minute - time.Second},                 // five an hour: until the first leaves
		{time.Hour - 2*time.Minute - time.Second, 0}, {0, 0}, {0, time.Second}, // the two of the first second left
	} {
		now = now.Add(step.after)
		if wait := enter("projects/1"); wait != step.wait {
			t.Fatalf("request %d: wait %v, want %v", i, wait, step.wait)
		}
	}
	if wait := enter("projects/2"); wait != 0 {
		t.Errorf("another project waits %v", wait)
	}
	if n := len(l.projects["projects/1"].times); n > 5 {
		t.Errorf("%d times are remembered", n)
	}
	for i := range 3 * manyProjects {
		now = now.Add(2 * time.Hour / manyProjects)
		enter(fmt.Sprint("projects/", i+10))
	}
	if n := len(l.projects); n > manyProjects {
		t.Errorf("%d projects are remembered", n)
	}
}

func TestRequestsAtOneTimeAreBoundedAndWithoutLimitsNothingIsKept(t *testing.T) {
	l := newLimiter(0, 0, 2)
	first, _ := l.enter("p")
	if second, _ := l.enter("p"); second == nil {
		t.Fatal("the second is refused")
	}
	if third, wait := l.enter("p"); third != nil || wait != time.Second {
		t.Fatalf("the third is let in, wait %v", wait)
	}
	first()
	first() // once more says nothing
	if third, _ := l.enter("p"); third == nil {
		t.Fatal("none is let in when one left")
	}
	if fourth, _ := l.enter("p"); fourth != nil {
		t.Fatal("one place was given back twice")
	}
	if len(l.projects["p"].times) != 0 {
		t.Error("times are kept without a rate")
	}
}
