package cohortsync_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"
)

// A drain that has no time for the calls in flight is as good as a kill: the
// next process repeats them.
func TestCallsCutOffByADrainAreRepeated(t *testing.T) {
	for name, at := range map[string]struct {
		kind channelKind
		path string
	}{
		"PARTNER":             {partner, "/partner"},
		"CUSTOM_LIST upload":  {customList, "/1/upload"},
		"CUSTOM_LIST publish": {customList, "/upload_custom_list"},
		"API_SEGMENT create":  {apiSegment, createPath},
		"API_SEGMENT upload":  {apiSegment, uploadPath},
		"API_SEGMENT update":  {apiSegment, updatePath},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(at.path)
			r := newRig(t, at.kind, sandbox.Knobs{}, func(h http.Handler) http.Handler {
				g.h = h
				return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { g.ServeHTTP(w, req) })
			})
			r.cfg.RetryTries = 1 // a call that is cut off is no try
			r.restart()
			all := r.people(map[channelKind]uint64{partner: 8000, customList: 8000, apiSegment: 800}[at.kind])
			r.world.SetLeaf("Buy", all...)
			s := r.sync("Buy", oneTime)
			g.closed.Store(true)
			resp, err := r.Syncs.RunSync(r.ctx, &cohortsyncv1.RunSyncRequest{Name: s.GetName()})
			require.NoError(t, err)
			<-g.waits
			ctx, cancel := context.WithTimeout(r.ctx, 500*time.Millisecond)
			defer cancel()
			start := time.Now()
			_ = r.Close(ctx) // what it says of the time that ran out is not the point
			require.Less(t, time.Since(start), 3*time.Second)
			g.closed.Store(false)
			close(g.open)
			r.start()
			run, err := r.Wait(r.ctx, resp.GetRun().GetName())
			require.NoError(t, err)
			r.balanced(r.ok(run))
			require.EqualValues(t, 2, run.GetAttempts())
			require.Equal(t, r.identifiers(all...), r.segment("Buy"))
			got, err := r.Syncs.GetSync(r.ctx, &cohortsyncv1.GetSyncRequest{Name: s.GetName()})
			require.NoError(t, err)
			require.Equal(t, cohortsyncv1.Sync_STATE_COMPLETED, got.GetSync().GetState())
		})
	}
}
