// Package benchkit makes realistic traffic and drives an ingestion service in
// process, for benchmarks: what decoding, identity, dedupe and the stores cost
// without HTTP and gRPC.
package benchkit

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"
	"google.golang.org/grpc"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/duck"
)

// Registry knows one project, whatever it is asked with.
type Registry struct{ Project *ingestion.Project }

// ByToken implements ingestion.Registry.
func (r Registry) ByToken(_ context.Context, token string) (*ingestion.Project, error) {
	if token != r.Project.Token {
		return nil, fault.New(fault.NotFound, "PROJECT_NOT_FOUND", "no such project")
	}
	return r.Project, nil
}

// ByID implements ingestion.Registry.
func (r Registry) ByID(context.Context, int64) (*ingestion.Project, error) { return r.Project, nil }

// Authenticate implements ingestion.Registry.
func (r Registry) Authenticate(context.Context, ingestion.Credential) (*ingestion.Project, error) {
	return r.Project, nil
}

// Handlers are the service's gRPC handlers, called directly.
type Handlers struct {
	Ingestion  ingestionv1.IngestionServiceServer
	Evaluation ingestionv1.EvaluationServiceServer
	Data       ingestionv1.DataServiceServer
	Usage      ingestionv1.UsageServiceServer
	Identity   ingestionv1.IdentityServiceServer
}

// RegisterService implements grpc.ServiceRegistrar.
func (h *Handlers) RegisterService(_ *grpc.ServiceDesc, impl any) {
	switch s := impl.(type) {
	case ingestionv1.IngestionServiceServer:
		h.Ingestion = s
	case ingestionv1.EvaluationServiceServer:
		h.Evaluation = s
	case ingestionv1.DataServiceServer:
		h.Data = s
	case ingestionv1.UsageServiceServer:
		h.Usage = s
	case ingestionv1.IdentityServiceServer:
		h.Identity = s
	}
}

// HandlersOf returns a service's handlers.
func HandlersOf(s *ingestion.Service) *Handlers {
	h := &Handlers{}
	s.Register(h)
	return h
}

// Gzip compresses a body as senders do.
func Gzip(b []byte) []byte {
	var buf bytes.Buffer
	w, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed) // the level is valid
	_, _ = w.Write(b)                                 // a bytes.Buffer never fails
	_ = w.Close()
	return buf.Bytes()
}

// ImportRequest is a strict /import of a body.
func ImportRequest(body []byte, gzipped bool) *ingestionv1.IngestRawRequest {
	r := &ingestionv1.IngestRawRequest{
		Endpoint: ingestionv1.IngestRawRequest_ENDPOINT_IMPORT, Method: "POST", ContentType: "application/json",
		RawQuery: "strict=1", Authorization: "Basic " + base64.StdEncoding.EncodeToString([]byte("bench:")), Body: body,
	}
	if gzipped {
		r.ContentEncoding = "gzip"
	}
	return r
}

// Import sends prepared bodies, conns at a time, and returns how long it took.
// It fails when a body is not accepted whole.
func Import(ctx context.Context, h *Handlers, bodies [][]byte, gzipped bool, conns int) (time.Duration, error) {
	var next atomic.Int64
	var failure atomic.Pointer[error]
	var wg sync.WaitGroup
	start := time.Now()
	for range conns {
		wg.Go(func() {
			for failure.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(bodies) {
					return
				}
				resp, err := h.Ingestion.IngestRaw(ctx, ImportRequest(bodies[i], gzipped))
				if err == nil && resp.GetStatus() != 200 {
					err = fmt.Errorf("import answered %d %.200s", resp.GetStatus(), resp.GetBody())
				}
				if err != nil {
					failure.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	if e := failure.Load(); e != nil {
		return 0, *e
	}
	return time.Since(start), nil
}

// Load imports n events in batches of 2,000 from a generator per connection.
func Load(ctx context.Context, h *Handlers, n, users, conns int, from time.Time, span time.Duration) error {
	const chunk = 100 // batches generated at a time, to bound memory
	g := NewGenerator(1, "load"+strconv.FormatInt(from.Unix(), 36), users, from, span)
	for n > 0 {
		var bodies [][]byte
		for range chunk {
			if n <= 0 {
				break
			}
			k := min(n, 2000)
			bodies = append(bodies, g.Batch(k))
			n -= k
		}
		if _, err := Import(ctx, h, bodies, false, conns); err != nil {
			return err
		}
	}
	return nil
}

// Profiles writes a profile of props properties for users 0 to n-1: plan,
// country, age and fillers.
func Profiles(ctx context.Context, h *Handlers, token string, n, props int) error {
	r := rand.New(rand.NewPCG(7, 7)) //nolint:gosec // synthetic data
	countries := []string{"IN", "US", "DE", "BR", "ID"}
	for at := 0; at < n; at += 2000 {
		b := []byte{'['}
		for i := at; i < min(n, at+2000); i++ {
			if i > at {
				b = append(b, ',')
			}
			b = fmt.Appendf(b, `{"$token":%q,"$distinct_id":%q,"$ignore_time":true,"$set":{"country":%q,"age":%d,"plan":"plan-%d"`, token, UserID(i), countries[r.IntN(len(countries))], r.IntN(80), r.IntN(10))
			for p := 3; p < props; p++ {
				b = fmt.Appendf(b, `,"p%d":"value %d"`, p, r.IntN(1000))
			}
			b = append(b, "}}"...)
		}
		resp, err := h.Ingestion.IngestRaw(ctx, &ingestionv1.IngestRawRequest{Endpoint: ingestionv1.IngestRawRequest_ENDPOINT_ENGAGE, Method: "POST", ContentType: "application/json", Body: append(b, ']')})
		if err != nil {
			return err
		}
		if string(resp.GetBody()) != "1" {
			return fmt.Errorf("engage answered %d %.200s", resp.GetStatus(), resp.GetBody())
		}
	}
	return nil
}

// BareMTU counts the users of the month of at with a qualifying event as a person at
// the engine's prompt would, on a file that no service has open. It returns the
// median of n times after the first.
func BareMTU(ctx context.Context, path string, at time.Time, n int) (took time.Duration, users int64, err error) {
	from := time.Date(at.Year(), at.Month(), 1, 0, 0, 0, 0, time.UTC)
	const text = `SELECT count(DISTINCT user_no) FROM events WHERE project_id=1 AND received_ms>=$1 AND received_ms<$2 AND rule='' AND user_no<>0`
	times, users, err := duck.Bare(ctx, duck.Default(path), text, []any{from.UnixMilli(), from.AddDate(0, 1, 0).UnixMilli()}, n)
	if err != nil {
		return 0, 0, err
	}
	times = times[1:]
	slices.Sort(times)
	return times[len(times)/2], users, nil
}
