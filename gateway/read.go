package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/platform/basicauth"
	"github.com/cohortbridge/cohortbridge/platform/inflight"
)

// reader serves Mixpanel's query and export APIs
// (https://developer.mixpanel.com/reference/query-api).
type reader struct {
	projects       registryv1.ProjectServiceClient
	cohorts        cohortsyncv1.CohortServiceClient
	data           ingestionv1.DataServiceClient
	gate           *inflight.Gate
	query, exports *limiter
}

func readRoutes(mux *http.ServeMux, conns Conns, cfg *Config, gate *inflight.Gate) {
	l := cfg.Read
	d := &reader{
		projects: registryv1.NewProjectServiceClient(conns.Registry), cohorts: cohortsyncv1.NewCohortServiceClient(conns.CohortSync), data: ingestionv1.NewDataServiceClient(conns.Ingestion),
		gate:  gate,
		query: newLimiter(l.QueryPerHour, 0, l.QueryConcurrent), exports: newLimiter(l.ExportPerHour, l.ExportPerSecond, l.ExportConcurrent),
	}
	for path, serve := range map[string]http.Handler{
		"/api/2.0/export":         d.handler(d.exports, d.export, http.MethodGet),
		"/api/2.0/engage":         d.handler(d.query, d.engage, http.MethodGet, http.MethodPost),
		"/api/query/engage":       d.handler(d.query, d.engage, http.MethodGet, http.MethodPost),
		"/api/2.0/cohorts/list":   d.handler(d.query, d.listCohorts, http.MethodGet, http.MethodPost),
		"/api/query/cohorts/list": d.handler(d.query, d.listCohorts, http.MethodGet, http.MethodPost),
	} {
		mux.Handle(path, serve)
		mux.Handle(path+"/{$}", serve)
	}
}

// problem is a request that can't be answered, with its HTTP status.
type problem struct {
	code int
	text string
	wait time.Duration
}

// Error implements error.
func (p *problem) Error() string { return p.text }

func bad(format string, args ...any) error {
	return &problem{code: http.StatusBadRequest, text: fmt.Sprintf(format, args...)}
}

// question is a request whose caller may read the project.
type question struct {
	w http.ResponseWriter
	r *http.Request
	// ctx carries the caller's credential to the services.
	ctx context.Context //nolint:containedctx // lives as long as the request it belongs to
	// project is projects/{id}.
	project string
	// params are those of the query and of the form together.
	params url.Values
}

// handler reads the parameters, finds the project and whether the caller may read
// it, counts the request against the limits, and then answers.
func (d *reader) handler(limit *limiter, answer func(*question) error, methods ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := func() error {
			q := &question{w: w, r: r, ctx: metadata.AppendToOutgoingContext(r.Context(), "authorization", r.Header.Get("Authorization"))}
			var err error
			if q.params, err = d.params(w, r, methods); err != nil {
				return err
			}
			if q.project, err = d.project(q); err != nil {
				return err
			}
			leave, wait := limit.enter(q.project)
			if leave == nil {
				return &problem{http.StatusTooManyRequests, tooMany, wait}
			}
			defer leave()
			return answer(q)
		}()
		if err != nil {
			readError(w, err)
		}
	})
}

// readError answers as Mixpanel's query API does: {"error":"…","status":"error"}.
func readError(w http.ResponseWriter, err error) {
	p, ok := err.(*problem) //nolint:errorlint // ours are never wrapped
	if !ok {
		s := status.Convert(err)
		p = &problem{code: runtime.HTTPStatusFromCode(s.Code()), text: s.Message()}
		switch s.Code() {
		case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
			p.wait = time.Second
		default:
		}
	}
	if p.wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(p.wait.Seconds()))))
	}
	appAnswer(w, p.code, p.text)
}

// maxQueryBody bounds a form; 10,000 ids fit.
const maxQueryBody = 1 << 20

// params are the parameters of the query and of the form; the form's come first.
func (d *reader) params(w http.ResponseWriter, r *http.Request, methods []string) (url.Values, error) {
	if allow := strings.Join(methods, ", "); !slices.Contains(methods, r.Method) {
		w.Header().Set("Allow", allow)
		return nil, &problem{code: http.StatusMethodNotAllowed, text: "use " + allow}
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, bad("the query is not URL-encoded")
	}
	if r.Method != http.MethodPost || r.ContentLength == 0 {
		return query, nil
	}
	switch ct, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); ct {
	case "", "application/x-www-form-urlencoded", "text/plain", "application/octet-stream":
	default:
		// Taken for a form it would be read as no condition at all.
		return nil, &problem{code: http.StatusUnsupportedMediaType, text: "the body must be a form, application/x-www-form-urlencoded"}
	}
	size := r.ContentLength
	if size < 0 || size > maxQueryBody {
		size = maxQueryBody
	}
	room, ok := d.gate.Enter(size)
	if !ok {
		return nil, &problem{http.StatusTooManyRequests, busy, time.Second}
	}
	defer room.Leave()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQueryBody))
	if err != nil {
		p := &problem{}
		if p.code, p.text = bodyProblem(err); p.code == http.StatusServiceUnavailable {
			p.wait = time.Second
		}
		return nil, p
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, bad("the form is not URL-encoded")
	}
	for name, values := range query {
		form[name] = append(form[name], values...)
	}
	return form, nil
}

var decimal = regexp.MustCompile(`^[0-9]{1,18}$`)

// project finds the project of a request and makes sure that the caller may read
// it. A project secret names its project by itself; a service account needs
// project_id (https://developer.mixpanel.com/reference/project-secret).
func (d *reader) project(q *question) (string, error) {
	id := q.params.Get("project_id")
	if id == "" {
		header := q.r.Header.Get("Authorization")
		if _, secret, ok := basicauth.Parse(header); header != "" && (!ok || secret != "") {
			return "", bad("project_id: is required with a service account")
		}
		list, err := d.projects.ListProjects(q.ctx, &registryv1.ListProjectsRequest{PageSize: 1})
		if err != nil {
			return "", err
		}
		if len(list.GetProjects()) == 0 {
			return "", bad("project_id: is required")
		}
		return list.GetProjects()[0].GetName(), nil
	}
	if !decimal.MatchString(id) {
		return "", bad("project_id: must be a number")
	}
	name := "projects/" + id
	// Who may not read must not use the project's limits up.
	_, err := d.projects.GetProject(q.ctx, &registryv1.GetProjectRequest{Name: name})
	return name, err
}

// texts reads a parameter that is a JSON array of texts.
func (q *question) texts(name string) (out []string, err error) {
	s := q.params.Get(name)
	if s == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(s), &out); err != nil || out == nil {
		return nil, bad("%s: must be a JSON array of texts", name)
	}
	return out, nil
}

// number reads a parameter that is a whole number from least to most; absent is 0.
func (q *question) number(name string, least, most int64) (int64, error) {
	s := q.params.Get(name)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < least || n > most {
		return 0, bad("%s: must be a number from %d to %d", name, least, most)
	}
	return n, nil
}

// flag reads a parameter that is true or false.
func (q *question) flag(name string, absent bool) (bool, error) {
	switch strings.ToLower(q.params.Get(name)) {
	case "":
		return absent, nil
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	default:
		return false, bad("%s: must be true or false", name)
	}
}
