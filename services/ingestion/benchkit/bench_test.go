package benchkit_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/services/ingestion"
	"github.com/cohortbridge/cohortbridge/services/ingestion/benchkit"
)

var project = &ingestion.Project{ID: 1, Token: "bench", Identity: ingestion.Simplified}

func open(b *testing.B, dir string) (*benchkit.Handlers, func()) {
	b.Helper()
	cfg := ingestion.Default()
	cfg.DataDir = dir
	svc, err := ingestion.New(context.Background(), cfg, benchkit.Registry{Project: project})
	if err != nil {
		b.Fatal(err)
	}
	return benchkit.HandlersOf(svc), func() {
		if err := svc.Close(context.Background()); err != nil {
			b.Error(err)
		}
	}
}

// BenchmarkImport is P1 without HTTP and gRPC: gzip, 2,000 a batch, 8 callers,
// durable and deduplicated. Run with -benchtime=500x: one op is one batch.
func BenchmarkImport(b *testing.B) {
	dir := b.TempDir()
	h, done := open(b, dir)
	g := benchkit.NewGenerator(1, "b", 100_000, time.Now().Add(-time.Hour), time.Hour)
	// Half of the bodies warm the caches, as a service that runs has them warm.
	warm, bodies := make([][]byte, 100), make([][]byte, b.N)
	for i := range warm {
		warm[i] = benchkit.Gzip(g.Batch(2000))
	}
	raw := 0
	for i := range bodies {
		p := g.Batch(2000)
		raw += len(p)
		bodies[i] = benchkit.Gzip(p)
	}
	if _, err := benchkit.Import(context.Background(), h, warm, true, 8); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	took, err := benchkit.Import(context.Background(), h, bodies, true, 8)
	b.StopTimer()
	if err != nil {
		b.Fatal(err)
	}
	done()
	events := float64(2000 * b.N)
	b.ReportMetric(events/took.Seconds(), "events/s")
	b.ReportMetric(float64(raw)/took.Seconds()/1e6, "MB/s")
	var size int64
	_ = filepath.Walk(dir, func(_ string, i os.FileInfo, err error) error {
		if err == nil && !i.IsDir() {
			size += i.Size()
		}
		return nil
	})
	b.ReportMetric(float64(size)/(events+200_000), "B/event")
}

// BenchmarkTrackSingle is P12 without HTTP: one event a request, 512 callers.
func BenchmarkTrackSingle(b *testing.B) {
	h, done := open(b, b.TempDir())
	defer done()
	g := benchkit.NewGenerator(1, "s", 100_000, time.Now().Add(-time.Hour), time.Hour)
	bodies := make([][]byte, b.N)
	for i := range bodies {
		bodies[i] = g.Batch(1)
	}
	if err := benchkit.Load(context.Background(), h, 400_000, 100_000, 4, time.Now().Add(-time.Hour), time.Hour); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	took, err := benchkit.Import(context.Background(), h, bodies, false, 512)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/took.Seconds(), "requests/s")
}

type stream struct {
	ctx context.Context
	got []*ingestionv1.EvaluateLeavesResponse
}

func (s *stream) Send(m *ingestionv1.EvaluateLeavesResponse) error {
	s.got = append(s.got, m)
	return nil
}
func (s *stream) Context() context.Context   { return s.ctx }
func (*stream) SetHeader(metadata.MD) error  { return nil }
func (*stream) SendHeader(metadata.MD) error { return nil }
func (*stream) SetTrailer(metadata.MD)       {}
func (*stream) SendMsg(any) error            { return nil }
func (*stream) RecvMsg(any) error            { return io.EOF }

// BenchmarkLeaves is P3: a behavior and a property leaf on 5 M events and 500 k
// profiles of 15 properties. BENCH_EVENTS and BENCH_PROFILES change the size;
// BENCH_DIR keeps the data for the next run.
func BenchmarkLeaves(b *testing.B) {
	events, profiles := number("BENCH_EVENTS", 5_000_000), number("BENCH_PROFILES", 500_000)
	dir := os.Getenv("BENCH_DIR")
	fresh := dir == ""
	if fresh {
		dir = b.TempDir()
	} else if _, err := os.Stat(filepath.Join(dir, "events.duckdb")); err != nil {
		fresh = true
	}
	h, done := open(b, dir)
	defer done()
	ctx := context.Background()
	now := time.Now()
	if fresh {
		at := time.Now()
		if err := benchkit.Profiles(ctx, h, project.Token, profiles, 15); err != nil {
			b.Fatal(err)
		}
		b.Logf("%d profiles in %v", profiles, time.Since(at))
		at = time.Now()
		if err := benchkit.Load(ctx, h, events, profiles, 8, now.Add(-60*24*time.Hour), 60*24*time.Hour); err != nil {
			b.Fatal(err)
		}
		b.Logf("%d events in %v", events, time.Since(at))
	}
	three := 3.0
	req := &ingestionv1.EvaluateLeavesRequest{Parent: "projects/1", AsOf: timestamppb.New(now), Leaves: []*ingestionv1.Leaf{
		{Leaf: &ingestionv1.Leaf_Behavior{Behavior: &typev1.BehaviorLeaf{Events: []string{"Add To Cart"}, Threshold: &three, Window: &typev1.Window{Span: &typev1.Window_Last{Last: &typev1.RelativeWindow{Amount: 30, Unit: typev1.RelativeWindow_UNIT_DAY}}}}}},
		{Leaf: &ingestionv1.Leaf_Property{Property: &typev1.PropertyLeaf{Filter: &typev1.PropertyFilter{Property: "country", Type: typev1.ValueType_VALUE_TYPE_STRING, Operator: typev1.PropertyOperator_PROPERTY_OPERATOR_EQUALS, Operands: []*typev1.PropertyValue{{Value: &typev1.PropertyValue_StringValue{StringValue: "IN"}}}}}}},
	}}
	at := time.Now()
	run := func() *stream {
		s := &stream{ctx: ctx}
		if err := h.Evaluation.EvaluateLeaves(req, s); err != nil {
			b.Fatal(err)
		}
		return s
	}
	run()
	b.Logf("first evaluation, with feeding the projection: %v", time.Since(at))
	b.ResetTimer()
	var last *stream
	for range b.N {
		last = run()
	}
	b.StopTimer()
	sets := make([]*roaring64.Bitmap, 2)
	for i := range sets {
		sets[i] = roaring64.New()
		if err := sets[i].UnmarshalBinary(last.got[i].GetLeaf().GetUsers().GetRoaring()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(last.got[i].GetLeaf().GetDuration().AsDuration().Microseconds())/1000, "ms-leaf"+strconv.Itoa(i))
	}
	b.ReportMetric(float64(roaring64.And(sets[0], sets[1]).GetCardinality()), "users")
}

func number(env string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(env)); err == nil {
		return n
	}
	return def
}
