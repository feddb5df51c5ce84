// The app of the bench for Go's net/http: the same handlers on the same patterns as prefork_app.py.
//
// Usage: go-peer PORT
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
)

const slices = 100

func main() {
	text, err := os.ReadFile("item.json")
	if err != nil {
		log.Fatal(err)
	}
	prefix, suffix, _ := bytes.Cut(text, []byte("00000000"))
	slice := make([]byte, 1<<20)
	for i := range slice {
		slice[i] = byte(i)
	}
	routes, err := strconv.Atoi(os.Getenv("BENCH_ROUTES"))
	if err != nil {
		routes = 1
	}

	pong := []byte("pong")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ping", func(w http.ResponseWriter, r *http.Request) {
		w.Write(pong)
	})
	item := func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		body := make([]byte, 0, len(prefix)+len(id)+len(suffix))
		body = append(body, prefix...)
		body = append(body, id...)
		body = append(body, suffix...)
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	}
	for number := range routes {
		mux.HandleFunc(fmt.Sprintf("GET /api/v1/r%03d/items/{id}", number), item)
	}
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body)
	})
	mux.HandleFunc("GET /download", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(slices*len(slice)))
		for range slices {
			if _, err := w.Write(slice); err != nil {
				return
			}
		}
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], mux))
}
