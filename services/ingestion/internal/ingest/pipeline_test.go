package ingest_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/identity"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ingest"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/sqlledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gated is a warehouse whose Append waits for the test and answers as it says.
type gated struct {
	warehouse.Warehouse
	began  chan int   // rows of each group, when its Append begins
	answer chan error // what it returns
}

func (g *gated) Append(_ context.Context, rows []warehouse.Row) (warehouse.Appended, error) {
	g.began <- len(rows)
	if err := <-g.answer; err != nil {
		return warehouse.Appended{}, err
	}
	return warehouse.Appended{Stored: len(rows), Duplicate: make([]bool, len(rows))}, nil
}

var proj = &project.Project{ID: 1, Token: "t", Identity: project.Simplified}

func pipeline(t *testing.T, w warehouse.Warehouse, cfg ingest.PipelineConfig) *ingest.Pipeline {
	t.Helper()
	l, err := sqlledger.Open(context.Background(), "sqlite:"+filepath.Join(t.TempDir(), "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := mtu.Load()
	if err != nil {
		t.Fatal(err)
	}
	systems := ingest.NewSystems(l)
	if _, err := systems.Freeze(context.Background(), proj); err != nil {
		t.Fatal(err)
	}
	p := ingest.NewPipeline(cfg, w, identity.NewResolver(l, identity.NewCache(1000), time.Now), rules, systems.Of)
	t.Cleanup(func() {
		p.Close()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func events(n int, user string) []*event.Event {
	out := make([]*event.Event, n)
	for i := range out {
		out[i] = &event.Event{Project: proj, Name: "E", Arrival: []byte(user), Props: []byte("{}"), TimeMS: 1, SentMS: 1, InsertID: fmt.Append(nil, i)}
	}
	return out
}

func TestAFullQueueTellsCallersToComeBack(t *testing.T) {
	g := &gated{began: make(chan int), answer: make(chan error)}
	p := pipeline(t, g, ingest.PipelineConfig{GroupWait: time.Millisecond, MaxGroup: 10, QueueDepth: 100})
	var wg sync.WaitGroup
	submit := func(n int) {
		wg.Go(func() {
			if _, err := p.Submit(context.Background(), events(n, "u"), true); err != nil {
				t.Error(err)
			}
		})
	}
	submit(60)
	<-g.began // the disk is busy with these
	// 60 wait already: 41 more are too many.
	_, err := p.Submit(context.Background(), events(41, "u"), true)
	f := fault.As(err)
	if f == nil || f.Code != fault.Exhausted || f.RetryAfter <= 0 {
		t.Errorf("a full queue answered %v", err)
	}
	g.answer <- nil
	wg.Wait()
	// Once there is room again the same batch is taken, even one above the bound when nothing waits.
	submit(101)
	<-g.began
	g.answer <- nil
	wg.Wait()
}

func TestAFailedCommitFailsItsCallersAndNobodyElse(t *testing.T) {
	g := &gated{began: make(chan int), answer: make(chan error)}
	p := pipeline(t, g, ingest.PipelineConfig{GroupWait: time.Millisecond, MaxGroup: 10, QueueDepth: 100})
	result := make(chan error)
	go func() { _, err := p.Submit(context.Background(), events(1, "u"), true); result <- err }()
	<-g.began
	g.answer <- errors.New("disk full: user secret@example.org")
	if err := <-result; !fault.Is(err, fault.Unavailable) || err.Error() != "the events could not be stored; retry" {
		t.Errorf("a failed commit answered %v", err)
	}
	go func() { _, err := p.Submit(context.Background(), events(1, "u"), true); result <- err }()
	<-g.began
	g.answer <- nil
	if err := <-result; err != nil {
		t.Errorf("the next commit answered %v", err)
	}
}

func TestCallersOnTheirWayShareACommit(t *testing.T) {
	g := &gated{began: make(chan int), answer: make(chan error, 1)}
	g.answer <- nil
	// A long wait: the group must close because all callers are there, not by time.
	p := pipeline(t, g, ingest.PipelineConfig{GroupWait: time.Hour, MaxGroup: 1000, QueueDepth: 1000})
	const callers = 5
	ends := make([]func(), callers)
	for i := range ends {
		ends[i] = p.Begin()
	}
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			defer ends[i]()
			if _, err := p.Submit(context.Background(), events(3, fmt.Sprint("u", i)), true); err != nil {
				t.Error(err)
			}
		})
	}
	if n := <-g.began; n != 3*callers {
		t.Errorf("the first commit has %d events, want all %d", n, 3*callers)
	}
	wg.Wait()
}

func TestCloseFinishesWhatWasTakenAndRefusesTheRest(t *testing.T) {
	g := &gated{began: make(chan int), answer: make(chan error)}
	p := pipeline(t, g, ingest.PipelineConfig{GroupWait: time.Millisecond, MaxGroup: 10, QueueDepth: 100})
	result := make(chan error)
	go func() { _, err := p.Submit(context.Background(), events(1, "u"), true); result <- err }()
	<-g.began
	closed := make(chan struct{})
	go func() { p.Close(); close(closed) }()
	g.answer <- nil
	if err := <-result; err != nil {
		t.Errorf("a batch that was taken answered %v", err)
	}
	<-closed
	if _, err := p.Submit(context.Background(), events(1, "u"), true); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a closed pipeline answered %v", err)
	}
}
