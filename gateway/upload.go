package gateway

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
)

// uploader serves CohortService.UploadIds: its body is a CSV, which has no bound but
// that of the contract and so goes on piece by piece.
type uploader struct {
	rest    *runtime.ServeMux
	cohorts cohortsyncv1.CohortServiceClient
	// next serves the other posts to a cohort.
	next http.Handler
	// pause is how long the body may stand still.
	pause time.Duration
}

const uploadVerb = ":uploadIds"

// pieceBytes is how much of a CSV one message carries.
const pieceBytes = 256 << 10

// ServeHTTP implements http.Handler.
func (u *uploader) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	cohort, ok := strings.CutSuffix(r.PathValue("cohort"), uploadVerb)
	if !ok {
		u.next.ServeHTTP(w, r)
		return
	}
	resp, err := u.upload(w, r, "projects/"+r.PathValue("project")+"/cohorts/"+cohort)
	if err != nil {
		runtime.HTTPError(r.Context(), u.rest, jsonMarshaler(), w, r, err)
		return
	}
	b, err := jsonMarshaler().Marshal(resp)
	if err != nil {
		runtime.HTTPError(r.Context(), u.rest, jsonMarshaler(), w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the client went away
}

func (u *uploader) upload(w http.ResponseWriter, r *http.Request, cohort string) (*cohortsyncv1.UploadIdsResponse, error) {
	mode, err := uploadMode(r)
	if err != nil {
		return nil, err
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return nil, status.Error(codes.InvalidArgument, "Content-Encoding: send the CSV as it is")
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/") {
		return nil, status.Error(codes.InvalidArgument, "Content-Type: the body must be the CSV itself, as text/csv; curl does that with --data-binary @FILE")
	}
	ctx := metadata.AppendToOutgoingContext(r.Context(), "authorization", r.Header.Get("Authorization"))
	stream, err := u.cohorts.UploadIds(ctx)
	if err != nil {
		return nil, err
	}
	next := &cohortsyncv1.UploadIdsRequest{Name: cohort, Mode: mode}
	deadlines := http.NewResponseController(w)
	buf := make([]byte, pieceBytes)
	for {
		_ = deadlines.SetReadDeadline(time.Now().Add(u.pause)) // not every writer has deadlines; a server's has
		n, err := fill(r.Body, buf)
		end := err == io.EOF //nolint:errorlint // io.ErrUnexpectedEOF is a body that broke off
		if err != nil && !end {
			// Closing the stream would pass for the end of the CSV: leaving ends its context.
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, status.Error(codes.Unavailable, "the body did not arrive in time; nothing of it was taken")
			}
			return nil, status.Error(codes.InvalidArgument, "the request body broke off; nothing of it was taken")
		}
		next.Csv = buf[:n]
		if stream.Send(next) != nil {
			return stream.CloseAndRecv() // it says why
		}
		next = &cohortsyncv1.UploadIdsRequest{}
		if end {
			_ = deadlines.SetReadDeadline(time.Time{}) // see above
			return stream.CloseAndRecv()
		}
	}
}

// fill reads until buf is full. Unlike io.ReadFull it tells the end of a body, io.EOF,
// from a body that broke off.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// uploadMode reads the mode, by its name with or without the prefix of the contract.
func uploadMode(r *http.Request) (cohortsyncv1.UploadIdsRequest_Mode, error) {
	s := strings.TrimPrefix(strings.ToUpper(r.URL.Query().Get("mode")), "MODE_")
	if s == "" {
		return cohortsyncv1.UploadIdsRequest_MODE_REPLACE, nil
	}
	v, ok := cohortsyncv1.UploadIdsRequest_Mode_value["MODE_"+s]
	if !ok || v == 0 {
		return 0, status.Error(codes.InvalidArgument, "mode: want REPLACE, ADD or REMOVE")
	}
	return cohortsyncv1.UploadIdsRequest_Mode(v), nil
}
