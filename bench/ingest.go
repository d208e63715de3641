package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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

func bodies(g *benchkit.Generator, n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = benchkit.Gzip(g.Batch(batchSize))
	}
	return out
}

// ingest measures P1, P2 and P3.
func (b *bench) ingest(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "cohortbridge-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	limit, err := b.inProcess(ctx, filepath.Join(dir, "limit"))
	if err != nil {
		return err
	}
	s, err := b.standalone(ctx, filepath.Join(dir, "data"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	rate, err := b.overHTTP(ctx, s)
	if err != nil {
		return err
	}
	b.add(figure{ID: "P1", Value: rate, Unit: "events/s", Ratio: rate / 120_000, Against: "goal 120,000", Note: "gzip /import, 2,000 a batch, 8 connections, durable, deduplicated"})
	b.add(figure{ID: "P2", Value: rate / limit, Unit: "of the in-process limit", Ratio: rate / limit / 0.5, Against: "goal 0.5", Note: fmt.Sprintf("in process %.0f events/s in this run", limit)})
	return b.cohort(ctx, s)
}

// inProcess is what decode and append reach without HTTP and gRPC.
func (b *bench) inProcess(ctx context.Context, dir string) (_ float64, err error) {
	cfg := ingestion.Default()
	cfg.DataDir = dir
	svc, err := ingestion.New(ctx, cfg, benchkit.Registry{Project: &ingestion.Project{ID: 1, Token: "bench", Identity: ingestion.Simplified}})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, svc.Close(ctx)) }()
	h := benchkit.HandlersOf(svc)
	g := benchkit.NewGenerator(1, "limit", 100_000, time.Now().Add(-time.Hour), time.Hour)
	if _, err := benchkit.Import(ctx, h, bodies(g, 50), true, senders); err != nil {
		return 0, err
	}
	var rates []float64
	n := b.n(200_000) / batchSize
	for range rounds {
		took, err := benchkit.Import(ctx, h, bodies(g, n), true, senders)
		if err != nil {
			return 0, err
		}
		rates = append(rates, float64(n*batchSize)/took.Seconds())
	}
	return median(rates), nil
}

// overHTTP is P1: prepared bodies over 8 connections. Preparing them is not part
// of the time, sending them is, on the same two cores.
func (b *bench) overHTTP(ctx context.Context, s *standalone) (float64, error) {
	g := benchkit.NewGenerator(2, "p1", 100_000, time.Now().Add(-time.Hour), time.Hour)
	send := func(list [][]byte) (time.Duration, error) {
		start := time.Now()
		err := each(len(list), senders, func(i int) error {
			_, err := s.post(ctx, "/import?strict=1&project_id="+s.creds.ProjectID, list[i], "gzip")
			return err
		})
		return time.Since(start), err
	}
	if _, err := send(bodies(g, 50)); err != nil {
		return 0, err
	}
	var rates []float64
	n := b.n(200_000) / batchSize
	for range rounds {
		list := bodies(g, n)
		took, err := send(list)
		if err != nil {
			return 0, err
		}
		rates = append(rates, float64(n*batchSize)/took.Seconds())
	}
	return median(rates), nil
}

// cohort is P3: behaviour and property, 5 M events, 500 k profiles. The leaf
// cache is cold each time: every evaluation has its own instant.
func (b *bench) cohort(ctx context.Context, s *standalone) error {
	events, profiles := b.n(5_000_000), b.n(500_000)
	g := benchkit.NewGenerator(3, "p3", profiles, time.Now().Add(-60*24*time.Hour), 60*24*time.Hour)
	for left := events; left > 0; left -= 50 * batchSize {
		list := bodies(g, 50)
		if err := each(len(list), senders, func(i int) error {
			_, err := s.post(ctx, "/import?strict=1&project_id="+s.creds.ProjectID, list[i], "gzip")
			return err
		}); err != nil {
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
