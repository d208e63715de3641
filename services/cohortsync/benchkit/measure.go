package benchkit

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"

	"github.com/cohortbridge/cohortbridge/services/cohortsync"
)

// Destination is the CleverTap to deliver to.
type Destination struct {
	// URL is its base URL; the partner channel is at URL/partner/mixpanel/cohort.
	URL string
	// AccountID and Passcode are the account's.
	AccountID, Passcode string
	// Channel is how membership travels.
	Channel registryv1.CleverTap_Channel
}

// Delivery is what MeasureDelivery measured.
type Delivery struct {
	// Full and Dynamic are the first run with everyone and the run after the churn.
	Full, Dynamic *cohortsyncv1.Run
	// Planned is how long evaluating and planning the full run took, Delivered
	// its calls, from the first to the last.
	Planned, Delivered time.Duration
	// FullTook and DynamicTook are from the request to the final state.
	FullTook, DynamicTook time.Duration
}

// MeasureDelivery exports members users in full (figure P5), then changes churn
// of them (half leave, half come) and runs again (figure P6). dataDir must be empty.
func MeasureDelivery(ctx context.Context, dataDir string, to Destination, members, churn int) (d Delivery, err error) {
	w := NewWorld()
	all := roaring64.New()
	all.AddRange(1, uint64(members+churn/2)+1)
	w.Identify(all)
	now := roaring64.New()
	now.AddRange(1, uint64(members)+1)
	w.SetLeafSet("Buy", now)
	w.SetConnector(1, 1, &registryv1.CleverTap{AccountId: to.AccountID, Region: "eu1", HostUrl: to.URL, PartnerUrl: to.URL + "/partner/mixpanel/cohort", Channel: to.Channel, AdminEmail: "admin@example.org"}, to.Passcode)
	cfg := cohortsync.Default()
	cfg.DataDir, cfg.AllowPrivateDestinations = dataDir, true
	s, err := Start(ctx, cfg, w, slog.New(slog.DiscardHandler))
	if err != nil {
		return d, err
	}
	defer func() {
		if cerr := s.Close(context.WithoutCancel(ctx)); err == nil {
			err = cerr
		}
	}()
	sync, err := s.CreateSync(ctx, "Buy", 1, cohortsyncv1.Sync_MODE_DYNAMIC)
	if err != nil {
		return d, err
	}
	if err := d.full(ctx, s, sync.GetName()); err != nil {
		return d, err
	}
	// Leavers are spread over all members, so that every ledger block is touched.
	step := uint64(members) / uint64(churn/2)
	next := now.Clone()
	for i := range uint64(churn / 2) {
		next.Remove(1 + i*step)
		next.Add(uint64(members) + 1 + i)
	}
	w.SetLeafSet("Buy", next)
	start := time.Now()
	d.Dynamic, err = s.Run(ctx, sync.GetName())
	d.DynamicTook = time.Since(start)
	if err == nil && d.Dynamic.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED {
		err = fmt.Errorf("dynamic run: %s", d.Dynamic.GetReasonText())
	}
	return d, err
}

func (d *Delivery) full(ctx context.Context, s *System, sync string) error {
	start := time.Now()
	resp, err := s.Syncs.RunSync(ctx, &cohortsyncv1.RunSyncRequest{Name: sync})
	if err != nil {
		return err
	}
	st, err := s.Runs.WatchRun(ctx, &cohortsyncv1.WatchRunRequest{Name: resp.GetRun().GetName()})
	if err != nil {
		return err
	}
	var delivering, delivered time.Time
	for {
		m, err := st.Recv()
		if err != nil {
			break // the stream ends with the run; its state is looked at below
		}
		d.Full = m.GetRun()
		if d.Full.GetState() == cohortsyncv1.Run_STATE_DELIVERING && delivering.IsZero() {
			delivering = time.Now()
		}
		if t := d.Full.GetTotals(); t.GetBatches() > 0 && t.GetBatchesDone() == t.GetBatches() && delivered.IsZero() {
			delivered = time.Now()
		}
	}
	d.FullTook = time.Since(start)
	if d.Full.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED {
		return fmt.Errorf("full run: %s", d.Full.GetReasonText())
	}
	d.Planned, d.Delivered = delivering.Sub(start), delivered.Sub(delivering)
	return nil
}
