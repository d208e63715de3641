package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/services/ingestion"
	"github.com/cohortbridge/cohortbridge/services/ingestion/benchkit"
)

// month measures P7: a month's MTU on 10 M events against the bare query, by the
// same engine on the same file.
func (b *bench) month(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.dir, "cohortbridge-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := openLimit(ctx, dir)
	if err != nil {
		return err
	}
	events := b.n(10_000_000)
	var asked []float64
	var mtu int64
	err = benchkit.Load(ctx, l.h, events, b.n(1_000_000), senders, time.Now().Add(-time.Hour), time.Hour)
	for i := 0; i < 8 && err == nil; i++ {
		at := time.Now()
		var r *ingestionv1.GetUsageResponse
		r, err = l.h.Usage.GetUsage(ctx, &ingestionv1.GetUsageRequest{Parent: "projects/1"})
		asked, mtu = append(asked, time.Since(at).Seconds()), r.GetMtu()
	}
	if err := errors.Join(err, l.close(ctx)); err != nil {
		return err
	}
	bare, users, err := benchkit.BareMTU(ctx, filepath.Join(dir, "events.duckdb"), time.Now().UTC(), 8)
	if err != nil {
		return err
	}
	if users != mtu {
		return fmt.Errorf("GetUsage says %d, the bare query %d", mtu, users)
	}
	took := median(asked[1:])
	b.add(figure{ID: "P7", Value: took, Unit: "s", Ratio: took / bare.Seconds() / 1.2, Against: "goal 1.2 × the bare query", Note: fmt.Sprintf("month's MTU of %d events and %d users; %.2f × the bare count(DISTINCT) of %.3f s", events, mtu, took/bare.Seconds(), bare.Seconds())})
	return nil
}

// full measures P8: the import rate with 50 M events stored against that of an
// empty store, rounds in turn.
func (b *bench) full(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.dir, "cohortbridge-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	stored := b.n(50_000_000)
	// The service itself fills the store, two months of it, as its own imports would.
	cfg := ingestion.Default()
	cfg.DataDir = filepath.Join(dir, "full", "ingestion")
	svc, err := ingestion.New(ctx, cfg, benchkit.Registry{Project: &ingestion.Project{ID: 1, Token: "bench", Identity: ingestion.Simplified}})
	if err != nil {
		return err
	}
	err = benchkit.Load(ctx, benchkit.HandlersOf(svc), stored, 1_000_000, senders, time.Now().Add(-60*24*time.Hour), 60*24*time.Hour)
	if err := errors.Join(err, svc.Close(ctx)); err != nil {
		return err
	}
	full, err := b.standalone(ctx, filepath.Join(dir, "full"))
	if err != nil {
		return err
	}
	empty, err := b.standalone(ctx, filepath.Join(dir, "empty"))
	if err != nil {
		return errors.Join(err, full.close())
	}
	defer func() { err = errors.Join(err, full.close(), empty.close()) }()
	g := benchkit.NewGenerator(5, "p8", 100_000, time.Now().Add(-time.Hour), time.Hour)
	rates := map[*standalone][]float64{}
	n := b.n(400_000) / batchSize
	for round := range rounds + 1 {
		for _, s := range []*standalone{empty, full} {
			list, _ := bodies(g, n, batchSize)
			got, err := s.run(ctx, request{strictImport + s.creds.ProjectID, "application/json", "gzip"}, senders, in(list))
			if err != nil {
				return err
			}
			if round > 0 { // the first one warms the caches up
				rates[s] = append(rates[s], got.perSecond()*batchSize)
			}
		}
	}
	ratio := median(rates[full]) / median(rates[empty])
	rss, err := full.rss()
	if err != nil {
		return err
	}
	b.add(figure{ID: "P8", Value: ratio, Unit: "of the empty store's rate", Ratio: ratio / 0.8, Against: "goal 0.8", Note: fmt.Sprintf("%.0f events/s with %d events stored, %.0f empty, rounds in turn; ready in %.2f s, %.0f MB RSS", median(rates[full]), stored, median(rates[empty]), full.ready.Seconds(), rss)})
	return nil
}

// soak imports for a while, generating as it sends, and looks at what grows.
func (b *bench) soak(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.dir, "cohortbridge-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := b.standalone(ctx, dir)
	if err != nil {
		return err
	}
	defer func() {
		s.http.CloseIdleConnections()
		err = errors.Join(err, s.conn.Close())
	}()
	deadline := time.Now().Add(b.soakFor)
	queue := make(chan []byte, senders)
	go func() {
		defer close(queue)
		g := benchkit.NewGenerator(6, "soak", 100_000, time.Now().Add(-time.Hour), time.Hour)
		for time.Now().Before(deadline) {
			queue <- benchkit.Gzip(g.Batch(batchSize))
		}
	}()
	filesBefore, err := s.files()
	if err != nil {
		return err
	}
	var peak float64
	watching, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			if mb, err := s.rss(); err == nil {
				peak = max(peak, mb)
			}
			select {
			case <-tick.C:
			case <-watching.Done():
				return
			}
		}
	}()
	got, err := s.run(ctx, request{strictImport + s.creds.ProjectID, "application/json", "gzip"}, senders, func() []byte { return <-queue })
	stop()
	<-watched
	if err != nil {
		return errors.Join(err, s.stop())
	}
	// Goroutines and files of the connections need a moment to end.
	select {
	case <-time.After(3 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	filesAfter, err := s.files()
	if err != nil {
		return errors.Join(err, s.stop())
	}
	dump, err := s.dump()
	if err != nil {
		return err
	}
	goroutines := strings.Count(dump, "\ngoroutine ")
	b.add(figure{ID: "RSS", Value: peak, Unit: "MB at most", Ratio: peak / 600, Against: "goal 600 MB", Note: fmt.Sprintf("%v of imports as in P1, generated while sending: %.0f events/s, %d events; open files %d before, %d after; %d goroutines after", b.soakFor, got.perSecond()*batchSize, got.requests*batchSize, filesBefore, filesAfter, goroutines)})
	return nil
}
