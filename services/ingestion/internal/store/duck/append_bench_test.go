package duck_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/duck"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// BenchmarkAppend commits groups of rows, as few and as many callers make them. It
// also prints the processor time of a commit, the engine's threads included.
func BenchmarkAppend(b *testing.B) {
	for _, rows := range []int{1, 32, 500, 10_000} {
		b.Run(fmt.Sprint(rows), func(b *testing.B) {
			w, err := duck.Open(context.Background(), duck.Default(filepath.Join(b.TempDir(), "events.duckdb")))
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = w.Close() }()
			group := make([]warehouse.Row, rows)
			before := cpu(b)
			for b.Loop() {
				for i := range group {
					group[i] = warehouse.Row{ProjectID: 1, UserNo: uint64(i + 1), Name: "Add To Cart", TimeMS: base, ReceivedMS: base, Day: 20_000, Hash: rand.Uint64(), InsertID: []byte("p1-7d1"), RulesVersion: 1, Props: fmt.Appendf(nil, props, rand.Uint64(), rand.IntN(1000))}
				}
				if _, err := w.Append(context.Background(), group); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpu(b)-before)*1e6/float64(b.N), "cpu-µs/op")
			b.ReportMetric((cpu(b)-before)*1e9/float64(b.N*rows), "cpu-ns/row")
		})
	}
}

const (
	base  = 1_795_528_247_140
	props = `{"$city":"Mumbai","$region":"Maharashtra","mp_country_code":"IN","$os":"Android","$os_version":"14","$model":"Pixel 8","$manufacturer":"Google","$screen_height":2400,"$screen_width":1080,"session_id":"%x","price":%d.5}`
)

// cpu is the processor time of this process, in seconds.
func cpu(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
