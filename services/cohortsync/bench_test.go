package cohortsync_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

// light takes everything after 100 ms and keeps nothing: what is measured is
// the engine alone.
type light struct{}

func (light) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := make([]byte, 32)
	_, _ = io.ReadFull(r.Body, head)
	_, _ = io.Copy(io.Discard, r.Body)
	time.Sleep(100 * time.Millisecond) // the latency of the destination
	switch r.URL.Path {
	case "/partner/mixpanel/cohort":
		action, _, _ := strings.Cut(strings.TrimPrefix(string(head), `{"action":"`), `"`)
		fmt.Fprintf(w, `{"action":%q,"status":"success"}`, action)
	case "/get_custom_list_segment_url":
		fmt.Fprintf(w, `{"status":"success","presignedS3URL":"http://%s/s3"}`, r.Host)
	default:
		fmt.Fprint(w, `{"status":"success","processed":1000,"unprocessed":[]}`)
	}
}

// BenchmarkDelivery is figures P5 and P6: 1 M members (or MEMBERS) at 100 ms a
// call, 15 in flight, then 0.1 % churn. DEST=sandbox delivers to the sandbox,
// CHANNEL=CUSTOM_LIST by that channel.
func BenchmarkDelivery(b *testing.B) {
	members := 1_000_000
	if s := os.Getenv("MEMBERS"); s != "" {
		var err error
		members, err = strconv.Atoi(s)
		require.NoError(b, err)
	}
	for b.Loop() {
		sb, err := sandbox.New(sandbox.Config{Knobs: sandbox.Knobs{LatencyMS: 100}})
		require.NoError(b, err)
		h := sb.Handler()
		if os.Getenv("DEST") != "sandbox" {
			h = light{}
		}
		srv := httptest.NewServer(h)
		kind := partner
		if os.Getenv("CHANNEL") == "CUSTOM_LIST" {
			kind = customList
		}
		d, err := benchkit.MeasureDelivery(b.Context(), b.TempDir(), benchkit.Destination{URL: srv.URL, AccountID: account, Passcode: passcode, Channel: kind}, members, members/1000)
		require.NoError(b, err)
		bound := time.Duration((members+14999)/15000) * 100 * time.Millisecond
		b.ReportMetric(d.Planned.Seconds(), "plan-s")
		b.ReportMetric(d.Delivered.Seconds(), "deliver-s")
		b.ReportMetric(d.Delivered.Seconds()/bound.Seconds(), "P5-ratio")
		b.ReportMetric(d.FullTook.Seconds(), "full-s")
		b.ReportMetric(d.DynamicTook.Seconds(), "dynamic-s")
		b.ReportMetric(100*d.DynamicTook.Seconds()/d.FullTook.Seconds(), "P6-time-%")
		b.ReportMetric(100*float64(d.Dynamic.GetTotals().GetCalls())/float64(d.Full.GetTotals().GetCalls()), "P6-calls-%")
		srv.Close()
		sb.Close()
	}
}
