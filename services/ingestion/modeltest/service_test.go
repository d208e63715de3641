package modeltest_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion"
	"github.com/cohortbridge/cohortbridge/services/ingestion/benchkit"
)

// registry knows the projects by number, token and secret "secret-<id>".
type registry []*ingestion.Project

func (r registry) find(ok func(*ingestion.Project) bool) (*ingestion.Project, error) {
	for _, p := range r {
		if ok(p) {
			return p, nil
		}
	}
	return nil, fault.New(fault.NotFound, "PROJECT_NOT_FOUND", "no such project")
}

func (r registry) ByToken(_ context.Context, token string) (*ingestion.Project, error) {
	return r.find(func(p *ingestion.Project) bool { return p.Token == token })
}

func (r registry) ByID(_ context.Context, id int64) (*ingestion.Project, error) {
	return r.find(func(p *ingestion.Project) bool { return p.ID == id })
}

func (r registry) Authenticate(_ context.Context, c ingestion.Credential) (*ingestion.Project, error) {
	return r.find(func(p *ingestion.Project) bool { return c.Username == fmt.Sprint("secret-", p.ID) })
}

// service is ingestion on a folder.
type service struct {
	cfg ingestion.Config
	reg registry
	now time.Time
	svc *ingestion.Service
	*benchkit.Handlers
}

func newService(dir string, s *setup) (*service, error) {
	v := &service{cfg: ingestion.Default(), now: s.Start}
	v.cfg.FeedInterval = 10 * time.Millisecond // the feed is at work whenever the service is stopped
	v.cfg.DataDir, v.cfg.HashBudget, v.cfg.IdentityCache, v.cfg.WarehouseMemoryMB = dir, s.HashBudget, s.IdentityCache, 64
	for i, system := range []ingestion.IdentitySystem{ingestion.Simplified, ingestion.Original, ingestion.Legacy} {
		v.reg = append(v.reg, &ingestion.Project{ID: int64(i + 1), Token: fmt.Sprint("tok-", i+1), Identity: system, MTU: ingestion.MTU{NameOnly: s.NameOnly, ByEventTime: s.ByEventTime, Sources: s.Sources}})
	}
	return v, v.open()
}

func (v *service) open() (err error) {
	v.svc, err = ingestion.New(context.Background(), v.cfg, v.reg, ingestion.WithClock(func() time.Time { return v.now }))
	if err == nil {
		v.Handlers = benchkit.HandlersOf(v.svc)
	}
	return err
}

func (v *service) close() error { return v.svc.Close(context.Background()) }

// send sends a request and reads the answer.
func (v *service) send(r *request) (a answer, text string, err error) {
	req := &ingestionv1.IngestRawRequest{Endpoint: ingestionv1.IngestRawRequest_Endpoint(r.Endpoint), Method: "POST", ContentType: "application/json"} //nolint:gosec // 1 to 4
	body := "[" + strings.Join(r.Items, ",") + "]"
	if r.Lines {
		body, req.ContentType = strings.Join(r.Items, "\n"), "application/x-ndjson"
	}
	if r.Form {
		body, req.ContentType = url.Values{"data": {base64.StdEncoding.EncodeToString([]byte(body))}}.Encode(), "application/x-www-form-urlencoded"
	}
	req.Body = []byte(body)
	if r.Gzip {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		if _, err := w.Write(req.Body); err != nil {
			return a, "", err
		}
		if err := w.Close(); err != nil {
			return a, "", err
		}
		req.Body, req.ContentEncoding = b.Bytes(), "gzip"
	}
	if r.Strict {
		req.RawQuery = "strict=1"
	} else if r.Endpoint == imports {
		req.RawQuery = "strict=0"
	}
	if r.Endpoint == imports {
		req.Authorization = "Basic " + base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "secret-%d:", r.Project))
	}
	resp, err := v.Ingestion.IngestRaw(context.Background(), req)
	if err != nil {
		return a, "", err
	}
	text = fmt.Sprintf("%d %s", resp.GetStatus(), resp.GetBody())
	var out struct {
		Num    int `json:"num_records_imported"`
		Failed []struct {
			Index int
			Field string
		} `json:"failed_records"`
	}
	if b := resp.GetBody(); len(b) > 0 && b[0] == '{' {
		if err := json.Unmarshal(b, &out); err != nil {
			return a, text, err
		}
	}
	a.accepted, a.refused = out.Num, resp.GetStatus() == 400 && len(out.Failed) == 0
	for _, f := range out.Failed {
		a.failures = append(a.failures, failure{f.Index, f.Field})
	}
	return a, text, nil
}

// expect is the answer that a request must get, as its text or its contents.
func expect(r *request, a answer) (digit string, full *answer) {
	switch {
	case a.refused && (r.Strict || r.Endpoint == imports):
		return "", &answer{refused: true}
	case r.Endpoint == imports && !r.Strict: // the failures are not told
		return "", &answer{accepted: a.accepted}
	case r.Endpoint == imports || r.Strict && r.Endpoint != track && len(a.failures) > 0:
		return "", &a
	case a.refused || a.accepted == 0 && len(a.failures) > 0:
		return "200 0", nil
	default:
		return "200 1", nil
	}
}

// sink collects a server stream.
type sink[T any] struct {
	grpc.ServerStream
	got []*T
}

func (s *sink[T]) Context() context.Context { return context.Background() }
func (s *sink[T]) Send(m *T) error          { s.got = append(s.got, m); return nil }
