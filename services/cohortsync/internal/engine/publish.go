package engine

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"go.opentelemetry.io/otel/trace"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/delivery"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// published is what a publish did: its calls, and the removals it brought about.
type published struct {
	totals  store.Totals
	results []store.Result
}

// publish spools the ledger's members without those to be removed to a file
// and puts it in the segment's place. ce says why it did not work.
func (x *execution) publish(ctx context.Context, pub channel.Publisher, f *folding) (p published, ce *clevertap.Error, err error) {
	gone := roaring64.New()
	movedFrom := map[uint64]string{}
	for _, h := range f.heads {
		if h.Op != channel.Remove {
			continue
		}
		if err := f.each(h, func(e ledger.Entry, flags byte, _ store.Outcome, _ string) {
			if flags&store.FlagMoved != 0 {
				movedFrom[e.User] = e.Identifier
				return
			}
			gone.Add(e.User)
		}); err != nil {
			return p, nil, err
		}
	}
	file, err := os.CreateTemp(x.cfg.TempDir, "list-*.csv")
	if err != nil {
		return p, nil, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	w := bufio.NewWriterSize(file, 1<<16)
	if _, err := w.WriteString(clevertap.ListHeader); err != nil {
		return p, nil, err
	}
	blocks, err := x.store.LedgerBlocks(ctx, x.sync.ID)
	if err != nil {
		return p, nil, err
	}
	for _, no := range blocks {
		b, err := x.store.LedgerBlock(ctx, x.sync.ID, no)
		if err != nil {
			return p, nil, err
		}
		entries, err := b.Entries()
		if err != nil {
			return p, nil, err
		}
		for _, e := range entries {
			if gone.Contains(e.User) || movedFrom[e.User] == e.Identifier {
				continue
			}
			if _, err := w.WriteString(pub.PublishLine(e.Identifier)); err != nil {
				return p, nil, err
			}
		}
	}
	if err := w.Flush(); err != nil {
		return p, nil, err
	}
	size, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return p, nil, err
	}
	// CleverTap takes three of these calls at once, and one is left to the
	// account's other jobs; they are made one after the other, so one slot is one call.
	limiter := x.limiter(channel.Traits{Group: "list", Concurrency: 2})
	calls := 0
	report := delivery.Retry(trace.ContextWithSpan(x.stop, trace.SpanFromContext(ctx)), x.hard, x.cfg.Policy, limiter, func(ctx context.Context) error { //nolint:contextcheck // the calls end with the run, not with the writes
		n, err := pub.Publish(ctx, x.segment, file, size)
		calls += n
		return err
	})
	p.totals.Calls = int64(calls)
	if report.Outcome.State != delivery.Delivered {
		if report.Last == nil {
			report.Last = &clevertap.Error{Class: clevertap.Transient, Message: "the list was not published: the run was stopped"}
		}
		return p, report.Last, nil
	}
	for _, h := range f.heads {
		if h.Op != channel.Remove || h.Done {
			continue
		}
		p.results = append(p.results, store.Result{Index: h.Index, Outcome: store.Sent})
		p.totals.BatchesDone++
		if err := f.each(h, func(_ ledger.Entry, flags byte, _ store.Outcome, _ string) {
			if flags&store.FlagMoved == 0 {
				p.totals.Removed++
				p.totals.RemovePending--
			}
		}); err != nil {
			return p, nil, err
		}
	}
	return p, nil, nil
}
