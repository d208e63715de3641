package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/services/ingestion"
	"github.com/cohortbridge/cohortbridge/services/ingestion/benchkit"
)

const (
	batchSize = 2000
	senders   = 8
	rounds    = 3
)

func bodies(g *benchkit.Generator, n, batch int) (list [][]byte, raw int) {
	list = make([][]byte, n)
	for i := range list {
		b := g.Batch(batch)
		raw += len(b)
		list[i] = benchkit.Gzip(b)
	}
	return list, raw
}

// in hands bodies out one after the other to any number of callers.
func in(list [][]byte) func() []byte {
	var next atomic.Int64
	return func() []byte {
		if i := int(next.Add(1)) - 1; i < len(list) {
			return list[i]
		}
		return nil
	}
}

var strictImport = "/import?strict=1&project_id="

// ingest measures P1, P2, P12 and P13. The in-process limit is taken in the
// same run, its rounds between those over HTTP, since the machine is not always
// equally fast.
func (b *bench) ingest(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.dir, "cohortbridge-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	limit, err := openLimit(ctx, filepath.Join(dir, "limit"))
	if err != nil {
		return err
	}
	s, err := b.standalone(ctx, filepath.Join(dir, "data"))
	if err != nil {
		return errors.Join(err, limit.close(ctx))
	}
	err = b.imports(ctx, limit, s)
	if err == nil {
		err = b.single(ctx, s)
	}
	return errors.Join(err, limit.close(ctx), s.close())
}

// limit is an ingestion service in this process: what decode and append reach
// without HTTP and gRPC.
type limit struct {
	svc *ingestion.Service
	h   *benchkit.Handlers
	g   *benchkit.Generator
}

func openLimit(ctx context.Context, dir string) (*limit, error) {
	cfg := ingestion.Default()
	cfg.DataDir = dir
	svc, err := ingestion.New(ctx, cfg, benchkit.Registry{Project: &ingestion.Project{ID: 1, Token: "bench", Identity: ingestion.Simplified}})
	if err != nil {
		return nil, err
	}
	return &limit{svc, benchkit.HandlersOf(svc), benchkit.NewGenerator(1, "limit", 100_000, time.Now().Add(-time.Hour), time.Hour)}, nil
}

func (l *limit) close(ctx context.Context) error { return l.svc.Close(ctx) }

func (l *limit) round(ctx context.Context, n int) (float64, error) {
	list, _ := bodies(l.g, n, batchSize)
	took, err := benchkit.Import(ctx, l.h, list, true, senders)
	return float64(n*batchSize) / took.Seconds(), err
}

// imports is P1, P2 and P13: prepared bodies over 8 connections. Preparing them is
// not part of the time, sending them is, on the same two cores.
func (b *bench) imports(ctx context.Context, l *limit, s *standalone) error {
	g := benchkit.NewGenerator(2, "p1", 100_000, time.Now().Add(-time.Hour), time.Hour)
	q := request{strictImport + s.creds.ProjectID, "application/json", "gzip"}
	n := b.n(600_000) / batchSize
	var rates, limits, mbs []float64
	var cpu, rss float64
	var p50, p99 []time.Duration
	events := 0
	for round := range rounds + 1 {
		size := n
		if round == 0 {
			size = n / 3 // warms the caches up
		}
		inProcess, err := l.round(ctx, size)
		if err != nil {
			return err
		}
		list, raw := bodies(g, size, batchSize)
		before, err := s.cpu()
		if err != nil {
			return err
		}
		got, err := s.run(ctx, q, senders, in(list))
		if err != nil {
			return err
		}
		after, err := s.cpu()
		if err != nil {
			return err
		}
		events += size * batchSize
		if round == 0 {
			continue
		}
		rates, limits, mbs = append(rates, got.perSecond()*batchSize), append(limits, inProcess), append(mbs, float64(raw)/got.took.Seconds()/1e6)
		p50, p99 = append(p50, got.percentile(50)), append(p99, got.percentile(99))
		cpu = (after - before).Seconds() / got.took.Seconds()
		if rss, err = s.rss(); err != nil {
			return err
		}
	}
	rate := median(rates)
	b.add(figure{ID: "P1", Value: rate, Unit: "events/s", Ratio: rate / 120_000, Against: "goal 120,000",
		Note: fmt.Sprintf("gzip /import, 2,000 a batch, 8 connections, durable, deduplicated; %.0f MB/s of JSON, a batch p50 %.0f ms p99 %.0f ms, server %.2f cores, %.0f MB RSS", median(mbs), ms(median(p50)), ms(median(p99)), cpu, rss)})
	b.add(figure{ID: "P2", Value: rate / median(limits), Unit: "of the in-process limit", Ratio: rate / median(limits) / 0.5, Against: "goal 0.5", Note: fmt.Sprintf("in process %.0f events/s, rounds in turn", median(limits))})
	return b.disk(s, events)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// disk is P13: what the data folder holds for each event stored.
func (b *bench) disk(s *standalone, events int) error {
	var size int64
	err := filepath.WalkDir(s.dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil {
		return err
	}
	each := float64(size) / float64(events)
	b.add(figure{ID: "P13", Value: each, Unit: "bytes/event", Ratio: each / 250, Against: "goal 250", Note: fmt.Sprintf("%d events of 527 bytes and 100,000 users, the whole data folder with its logs while running", events)})
	return nil
}

// single is P12: one event a request on /track, durable before each answer.
func (b *bench) single(ctx context.Context, s *standalone) error {
	const connsFew, connsMany = 32, 512
	q := request{"/track", "application/json", ""}
	g := benchkit.NewGenerator(4, "p12", 100_000, time.Now().Add(-time.Hour), time.Hour)
	token := []byte(`,"token":"` + s.creds.ProjectToken + `","$city"`)
	results := map[int][]*load{}
	for round := range rounds + 1 {
		for _, conns := range []int{connsFew, connsMany} {
			n := b.n(conns * 120)
			list := make([][]byte, n)
			for i := range list {
				list[i] = bytes.Replace(g.Append(nil), []byte(`,"$city"`), token, 1)
			}
			got, err := s.run(ctx, q, conns, in(list))
			if err != nil {
				return err
			}
			if round > 0 {
				results[conns] = append(results[conns], got)
			}
		}
	}
	mid := func(conns int) (rate float64, p50, p99 time.Duration) {
		var rates []float64
		var a, z []time.Duration
		for _, l := range results[conns] {
			rates, a, z = append(rates, l.perSecond()), append(a, l.percentile(50)), append(z, l.percentile(99))
		}
		return median(rates), median(a), median(z)
	}
	few, f50, f99 := mid(connsFew)
	many, m50, m99 := mid(connsMany)
	b.add(figure{ID: "P12", Value: many, Unit: "requests/s at 512", Ratio: many / 12_000, Against: "goal 12,000", Note: fmt.Sprintf("one event a request on /track, durable; p50 %.1f ms, p99 %.1f ms (goal 100)", ms(m50), ms(m99))})
	b.add(figure{ID: "P12-32", Value: few, Unit: "requests/s at 32", Ratio: few / 5000, Against: "goal 5,000", Note: fmt.Sprintf("p50 %.1f ms, p99 %.1f ms (goal 100)", ms(f50), ms(f99))})
	return nil
}

// cohortPart is P3 on a system of its own.
func (b *bench) cohortPart(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.dir, "cohortbridge-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := b.standalone(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return b.cohort(ctx, s)
}

// cohort is P3: behaviour and property, 5 M events, 500 k profiles. The leaf
// cache is cold each time: every evaluation has its own instant.
func (b *bench) cohort(ctx context.Context, s *standalone) error {
	events, profiles := b.n(5_000_000), b.n(500_000)
	g := benchkit.NewGenerator(3, "p3", profiles, time.Now().Add(-60*24*time.Hour), 60*24*time.Hour)
	for left := events; left > 0; left -= 50 * batchSize {
		list, _ := bodies(g, 50, batchSize)
		if _, err := s.run(ctx, request{strictImport + s.creds.ProjectID, "application/json", "gzip"}, senders, in(list)); err != nil {
			return err
		}
	}
	countries := []string{"IN", "US", "DE", "BR", "ID"}
	if err := s.engage(ctx, profiles, func(i int) string {
		return fmt.Sprintf(`{"$token":%q,"$distinct_id":%q,"$ip":"0","$set":{"country":%q,"age":%d,"plan":"plan-%d"}}`, s.creds.ProjectToken, benchkit.UserID(i), countries[i%len(countries)], i%80, i%10)
	}); err != nil {
		return err
	}
	three := 3.0
	def := &typev1.Expression{Node: &typev1.Expression_AllOf{AllOf: &typev1.ExpressionList{Operands: []*typev1.Expression{
		{Node: &typev1.Expression_Behavior{Behavior: &typev1.BehaviorLeaf{Events: []string{"Add To Cart"}, Threshold: &three,
			Window: &typev1.Window{Span: &typev1.Window_Last{Last: &typev1.RelativeWindow{Amount: 30, Unit: typev1.RelativeWindow_UNIT_DAY}}}}}},
		{Node: &typev1.Expression_Property{Property: &typev1.PropertyLeaf{Filter: &typev1.PropertyFilter{Property: "country", Type: typev1.ValueType_VALUE_TYPE_STRING,
			Operator: typev1.PropertyOperator_PROPERTY_OPERATOR_EQUALS, Operands: []*typev1.PropertyValue{{Value: &typev1.PropertyValue_StringValue{StringValue: "IN"}}}}}}},
	}}}}
	var times []float64
	var users int64
	for range 7 {
		resp, err := cohortsyncv1.NewCohortServiceClient(s.conn).PreviewCohort(ctx, &cohortsyncv1.PreviewCohortRequest{Parent: s.project(), Definition: def})
		if err != nil {
			return err
		}
		times, users = append(times, resp.GetEvaluation().GetDuration().AsDuration().Seconds()), resp.GetEvaluation().GetUsers()
	}
	took := median(times[1:]) // the first one also brings the projection up to date
	b.add(figure{ID: "P3", Value: took, Unit: "s", Ratio: took / 0.05, Against: "goal 0.05 s", Note: fmt.Sprintf("%d events, %d profiles, %d users selected", events, profiles, users)})
	return nil
}

// engage writes n profiles over HTTP.
func (s *standalone) engage(ctx context.Context, n int, one func(i int) string) error {
	return each((n+batchSize-1)/batchSize, senders/2, func(batch int) error {
		body := []byte{'['}
		for i := batch * batchSize; i < min(n, (batch+1)*batchSize); i++ {
			if len(body) > 1 {
				body = append(body, ',')
			}
			body = append(body, one(i)...)
		}
		answer, err := s.post(ctx, "/engage", append(body, ']'), "")
		if err == nil && string(answer) != "1" {
			err = errors.New("/engage answered " + strconv.Quote(string(answer)))
		}
		return err
	})
}
